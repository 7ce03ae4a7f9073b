-- Deletes a category with its examples and adapters. Its counters stay, so that no version number is used again.
--
-- KEYS    1 category  2 example ids  3 versions  4 categories
-- ARGV    1 category id  2 prefix of the examples' keys  3 prefix of the adapters' keys
-- Returns {1 if there was such a category else 0, job that it waited for or ''}.
local existed = redis.call('EXISTS', KEYS[1])
local job = redis.call('HGET', KEYS[1], 'job') or ''
for _, id in ipairs(redis.call('LRANGE', KEYS[2], 0, -1)) do redis.call('DEL', ARGV[2] .. id) end
for _, version in ipairs(redis.call('HKEYS', KEYS[3])) do redis.call('DEL', ARGV[3] .. version) end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
redis.call('ZREM', KEYS[4], ARGV[1])
return {existed, job}
