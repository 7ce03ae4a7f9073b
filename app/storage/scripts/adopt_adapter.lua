-- Puts an adapter that comes from elsewhere in use, whatever the category waits for; makes the category if it is new.
--
-- KEYS    1 category  2 versions  3 adapter  4 counters  5 categories
-- ARGV    1 version  2 info (JSON)  3 safetensors  4 versions kept  5 prefix of the adapters' keys
--         6 name  7 prompts (JSON)  8 time  9 time as a number  10 category id
-- Returns the job that the category waited for, or ''.
-- Needs   use_adapter
local generation = redis.call('HINCRBY', KEYS[4], 'generation', 1)
redis.call('HSETNX', KEYS[1], 'name', ARGV[6])
redis.call('HSETNX', KEYS[1], 'created_at', ARGV[8])
redis.call('HSET', KEYS[1], 'generation', generation, 'prompts', ARGV[7])
redis.call('ZADD', KEYS[5], 'NX', ARGV[9], ARGV[10])
use_adapter(
  {category = KEYS[1], versions = KEYS[2], adapter = KEYS[3]},
  {version = ARGV[1], info = ARGV[2], tensors = ARGV[3], kept = ARGV[4], prefix = ARGV[5]},
  generation)
return redis.call('HGET', KEYS[1], 'job') or ''
