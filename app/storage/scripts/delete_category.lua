-- Deletes a category with its examples and adapters, and supersedes its job. Its counters stay, so that no version
-- number is used again.
--
-- KEYS    1 category  2 example ids  3 versions  4 categories
-- ARGV    1 JSON: category_id, example_prefix, adapter_prefix, superseded (see supersede_job)
-- Returns the id of the job that was superseded, or ''.
-- Needs   job
local given = cjson.decode(ARGV[1])
local superseded = supersede_job(KEYS[1], given.superseded)
for _, id in ipairs(redis.call('LRANGE', KEYS[2], 0, -1)) do redis.call('DEL', given.example_prefix .. id) end
for _, version in ipairs(redis.call('HKEYS', KEYS[3])) do redis.call('DEL', given.adapter_prefix .. version) end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
redis.call('ZREM', KEYS[4], given.category_id)
return superseded
