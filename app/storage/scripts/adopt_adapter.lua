-- Puts an adapter that comes from elsewhere in use, and supersedes the category's job; makes the category if it is new.
-- Sent again because its answer was lost, it changes nothing.
--
-- KEYS    1 category  2 versions  3 adapter  4 counters  5 categories  6 receipt
-- ARGV    1 version  2 info (JSON)  3 safetensors  4 versions kept  5 prefix of the adapters' keys
--         6 sha256  7 JSON: category_id, name, prompts (as JSON text), created_at, time, superseded (see supersede_job),
--         seen (see is_unchanged), receipt_ttl_s
-- Returns the id of the job that was superseded, or ''; nil if the category has changed.
-- Needs   job, use_adapter, unchanged, receipt
local given = cjson.decode(ARGV[7])
local answer = answer_kept(KEYS[6])
if answer then return answer end
if not is_unchanged(KEYS[1], given.seen) then return false end
local generation = redis.call('HINCRBY', KEYS[4], 'generation', 1)
redis.call('HSETNX', KEYS[1], 'name', given.name)
redis.call('HSETNX', KEYS[1], 'created_at', given.created_at)
redis.call('HSET', KEYS[1], 'generation', generation, 'prompts', given.prompts)
redis.call('ZADD', KEYS[5], 'NX', given.time, given.category_id)
use_adapter(
  {category = KEYS[1], versions = KEYS[2], adapter = KEYS[3]},
  {version = ARGV[1], info = ARGV[2], tensors = ARGV[3], kept = ARGV[4], prefix = ARGV[5],
   sha256 = ARGV[6]},
  generation)
return keep_answer(KEYS[6], supersede_job(KEYS[1], given.superseded), given.receipt_ttl_s)
