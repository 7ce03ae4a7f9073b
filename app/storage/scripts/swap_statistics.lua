-- Writes a model's InfoScore sums and their ranking, unless the sums were changed since they were read.
--
-- KEYS    1 sums  2 ranking
-- ARGV    1 sums as read ('' for none)  2 new sums  3 ranking of the new sums
-- Returns 1 if they were written, else 0.
local stored = redis.pcall('GET', KEYS[1])
-- A key of another type holds no sums.
if type(stored) ~= 'string' then stored = '' end
if stored ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('SET', KEYS[2], ARGV[3])
return 1
