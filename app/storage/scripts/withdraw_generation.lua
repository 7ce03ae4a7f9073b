-- Makes sure that a generation's adapter is never put in use: the category waits for a newer generation from now on.
--
-- KEYS    1 category  2 counters
-- ARGV    1 generation
-- Returns 1, also if the category waits for another generation already; 0 if its adapter is in use.
if redis.call('HGET', KEYS[1], 'adapter_generation') == ARGV[1] then return 0 end
if redis.call('HGET', KEYS[1], 'generation') == ARGV[1] then
  redis.call('HSET', KEYS[1], 'generation', redis.call('HINCRBY', KEYS[2], 'generation', 1))
end
return 1
