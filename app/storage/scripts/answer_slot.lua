-- Stores the answer to an Idempotency-Key, unless another request has taken its slot meanwhile.
--
-- KEYS    1 slot
-- ARGV    1 slot as it was claimed  2 slot with the answer  3 seconds until it expires
-- Returns 1 if it was stored, else 0.
local slot = redis.pcall('GET', KEYS[1])
if slot and slot ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
