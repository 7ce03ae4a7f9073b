-- Puts a job's adapter in use if the category still waits for its generation and has no result of it yet. Sent again
-- because its answer was lost, it changes nothing.
--
-- KEYS    1 category  2 versions  3 adapter
-- ARGV    1 version, which no other call has  2 info (JSON)  3 safetensors  4 versions kept
--         5 prefix of the adapters' keys  6 sha256  7 generation
-- Returns 1 if this call put the adapter in use, else 0.
-- Needs   use_adapter
if redis.call('HGET', KEYS[1], 'generation') ~= ARGV[7] then return 0 end
if redis.call('HGET', KEYS[1], 'adapter_generation') == ARGV[7] then
  return redis.call('HGET', KEYS[1], 'result_version') == ARGV[1] and 1 or 0
end
use_adapter(
  {category = KEYS[1], versions = KEYS[2], adapter = KEYS[3]},
  {version = ARGV[1], info = ARGV[2], tensors = ARGV[3], kept = ARGV[4], prefix = ARGV[5],
   sha256 = ARGV[6]},
  ARGV[7])
return 1
