-- Puts a job's adapter in use if the category still waits for its generation and has no result of it yet.
--
-- KEYS    1 category  2 versions  3 adapter
-- ARGV    1 version  2 info (JSON)  3 safetensors  4 versions kept  5 prefix of the adapters' keys  6 sha256
--         7 generation
-- Returns 1 if the adapter is in use now, else 0.
-- Needs   use_adapter
if redis.call('HGET', KEYS[1], 'generation') ~= ARGV[7] then return 0 end
if redis.call('HGET', KEYS[1], 'adapter_generation') == ARGV[7] then return 0 end
use_adapter(
  {category = KEYS[1], versions = KEYS[2], adapter = KEYS[3]},
  {version = ARGV[1], info = ARGV[2], tensors = ARGV[3], kept = ARGV[4], prefix = ARGV[5],
   sha256 = ARGV[6]},
  ARGV[7])
return 1
