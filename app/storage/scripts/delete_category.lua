-- Deletes a category with its examples and adapters, whatever its keys hold, and supersedes its job. Its counters stay,
-- so that no version number is used again; one that is no number begins anew at the time in seconds, above all others.
-- Sent again because its answer was lost, it changes nothing.
--
-- KEYS    1 category  2 example ids  3 versions  4 categories  5 counters  6 receipt
--         7… examples and adapters that 2 and 3 don't name
-- ARGV    1 JSON: category_id, example_prefix, adapter_prefix, time (whole seconds), superseded (see supersede_job),
--         seen (see is_unchanged), receipt_ttl_s
-- Returns the id of the job that was superseded, or ''; nil if the category has changed.
-- Needs   job, unchanged, receipt
local given = cjson.decode(ARGV[1])
local answer = answer_kept(KEYS[6])
if answer then return answer end
if not is_unchanged(KEYS[1], given.seen) then return false end
local superseded = supersede_job(KEYS[1], given.superseded)
-- The error of a key of another type is a table without items.
for _, id in ipairs(redis.pcall('LRANGE', KEYS[2], 0, -1)) do redis.call('DEL', given.example_prefix .. id) end
for _, version in ipairs(redis.pcall('HKEYS', KEYS[3])) do redis.call('DEL', given.adapter_prefix .. version) end
for i = 7, #KEYS do redis.call('DEL', KEYS[i]) end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
redis.call('ZREM', KEYS[4], given.category_id)
local known = redis.pcall('HMGET', KEYS[5], 'generation', 'version')
if known.err then redis.call('DEL', KEYS[5]) end
for i, counter in ipairs({'generation', 'version'}) do
  local number = known.err and '' or known[i]
  if number and not (#number < 16 and string.match(number, '^%d+$')) then
    redis.call('HSET', KEYS[5], counter, given.time)
  end
end
return keep_answer(KEYS[6], superseded, given.receipt_ttl_s)
