-- Removes an example and, if others that show the category are left, records the job that tunes on them; a category
-- without such examples has no adapter. Sent again because its answer was lost, it changes nothing.
--
-- KEYS    1 category  2 counters  3 example ids  4 example  5 job  6 jobs  7 receipt
-- ARGV    1 JSON: example_id, example_prefix, job (see add_job), superseded (see supersede_job), receipt_ttl_s
-- Returns JSON: [examples left that show the category, generation, id of the job that was superseded or '']; nil if
--         there is no such example.
-- Needs   job, examples, receipt
local given = cjson.decode(ARGV[1])

local answer = answer_kept(KEYS[7])
if answer then return answer end
if not redis.call('LPOS', KEYS[3], given.example_id) then return false end
-- Before the other changes: it fails if the counter can't be read.
local generation = redis.call('HINCRBY', KEYS[2], 'generation', 1)
redis.call('LREM', KEYS[3], 1, given.example_id)
redis.call('DEL', KEYS[4])

local left = examples_that_show_it(KEYS[3], given.example_prefix)
local superseded = supersede_job(KEYS[1], given.superseded)
if left > 0 then
  add_job({category = KEYS[1], job = KEYS[5], jobs = KEYS[6]}, given.job, generation)
else
  redis.call('HSET', KEYS[1], 'generation', generation)
  redis.call('HDEL', KEYS[1], 'job', 'adapter_version', 'adapter_generation', 'result_version')
end
return keep_answer(KEYS[7], cjson.encode({left, generation, superseded}), given.receipt_ttl_s)
