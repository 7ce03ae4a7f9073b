-- Frees the slot of an Idempotency-Key, unless another request has taken it meanwhile.
--
-- KEYS    1 slot
-- ARGV    1 slot as it was claimed
-- Returns 1 if it was freed, else 0.
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
