-- Points a category at a version that is still kept, and supersedes the job whose adapter would take its place. Sent
-- again because its answer was lost, it changes nothing.
--
-- KEYS    1 category  2 versions  3 counters  4 receipt
-- ARGV    1 version  2 JSON: superseded (see supersede_job), seen (see is_unchanged), receipt_ttl_s
-- Returns {1, id of the job that was superseded or ''}, or {0, ''} if that version is not kept; nil if the category has
--         changed.
-- Needs   job, unchanged, receipt
local given = cjson.decode(ARGV[2])
local answer = answer_kept(KEYS[4])
if answer then return {1, answer} end
if not is_unchanged(KEYS[1], given.seen) then return false end
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 0 then return {0, ''} end
local superseded = ''
-- A job whose adapter was put in use has nothing left to do but to say so.
if redis.call('HGET', KEYS[1], 'adapter_generation') ~= redis.call('HGET', KEYS[1], 'generation') then
  redis.call('HSET', KEYS[1], 'generation', redis.call('HINCRBY', KEYS[3], 'generation', 1))
  superseded = supersede_job(KEYS[1], given.superseded)
end
redis.call('HSET', KEYS[1], 'adapter_version', ARGV[1])
return {1, keep_answer(KEYS[4], superseded, given.receipt_ttl_s)}
