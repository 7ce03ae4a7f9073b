-- Adds an example to a category, or replaces all of its examples; the category waits for `job` from now on.
-- Sent again because its answer was lost, it changes nothing.
--
-- KEYS    1 category  2 counters  3 example ids  4 example  5 categories
-- ARGV    1 name  2 prompts (JSON)  3 job  4 time  5 time as a number  6 example id  7 '1' to replace the others
--         8 most examples  9 category id  10 prefix of the examples' keys  11… the example's fields
-- Returns {generation, job that it waited for before or ''}, or {0, ''} if the category has as many examples as it may.
if redis.call('EXISTS', KEYS[4]) == 1 then return {tonumber(redis.call('HGET', KEYS[1], 'generation')), ''} end
local old = redis.call('LRANGE', KEYS[3], 0, -1)
if ARGV[7] == '1' then
  for _, id in ipairs(old) do redis.call('DEL', ARGV[10] .. id) end
  redis.call('DEL', KEYS[3])
elseif #old >= tonumber(ARGV[8]) then return {0, ''} end
redis.call('HSETNX', KEYS[1], 'name', ARGV[1])
redis.call('HSETNX', KEYS[1], 'created_at', ARGV[4])
redis.call('ZADD', KEYS[5], 'NX', ARGV[5], ARGV[9])
local prompts = cjson.decode(ARGV[2])
if ARGV[7] ~= '1' then
  local known = cjson.decode(redis.call('HGET', KEYS[1], 'prompts') or '[]')
  local seen = {}
  for _, word in ipairs(known) do seen[word] = true end
  for _, word in ipairs(prompts) do if not seen[word] then known[#known + 1] = word end end
  prompts = known
end
redis.call('HSET', KEYS[1], 'prompts', #prompts == 0 and '[]' or cjson.encode(prompts))
redis.call('RPUSH', KEYS[3], ARGV[6])
redis.call('HSET', KEYS[4], unpack(ARGV, 11))
local generation = redis.call('HINCRBY', KEYS[2], 'generation', 1)
local previous = redis.call('HGET', KEYS[1], 'job') or ''
redis.call('HSET', KEYS[1], 'generation', generation, 'job', ARGV[3])
return {generation, previous}
