-- Keeps the slot of an Idempotency-Key for some more time, unless another request has taken it meanwhile.
--
-- KEYS    1 slot
-- ARGV    1 slot as it was claimed  2 seconds until it expires
-- Returns 1 if it was kept, else 0.
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('EXPIRE', KEYS[1], ARGV[2])
