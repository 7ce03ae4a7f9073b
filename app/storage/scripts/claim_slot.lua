-- Takes the slot of an Idempotency-Key if it is free. Sent again because its answer was lost, it finds its own claim.
--
-- KEYS    1 slot
-- ARGV    1 slot as it is claimed  2 seconds until it expires
-- Returns 1 if it is this claim's now, else 0.
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'EX', ARGV[2]) then return 1 end
return redis.pcall('GET', KEYS[1]) == ARGV[1] and 1 or 0
