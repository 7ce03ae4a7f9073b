-- Removes an example; the category waits for `job` from now on, or has no adapter any more if no example is left.
-- Sent again because its answer was lost, it changes nothing.
--
-- KEYS    1 category  2 counters  3 example ids  4 example
-- ARGV    1 example id  2 job
-- Returns {1 if there was such an example else 0, examples left, generation, job that it waited for before or ''}.
if redis.call('LREM', KEYS[3], 1, ARGV[1]) == 0 then
  if redis.call('HGET', KEYS[1], 'job') ~= ARGV[2] then return {0, 0, 0, ''} end
  return {1, redis.call('LLEN', KEYS[3]), tonumber(redis.call('HGET', KEYS[1], 'generation')), ''}
end
redis.call('DEL', KEYS[4])
local left = redis.call('LLEN', KEYS[3])
local generation = redis.call('HINCRBY', KEYS[2], 'generation', 1)
local previous = redis.call('HGET', KEYS[1], 'job') or ''
redis.call('HSET', KEYS[1], 'generation', generation)
if left == 0 then redis.call('HDEL', KEYS[1], 'job', 'adapter_version', 'adapter_generation', 'result_version')
else redis.call('HSET', KEYS[1], 'job', ARGV[2]) end
return {1, left, generation, previous}
