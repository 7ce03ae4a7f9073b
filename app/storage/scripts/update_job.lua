-- Changes a job's record if its status allows it, and publishes the change.
--
-- KEYS    1 job
-- ARGV    1 JSON: statuses that allow the change  2 seconds until the record expires ('' for never)
--         3 channel of the job's changes  4… names and values of the fields
-- Returns 1 if the record was changed, else 0.
local status = redis.call('HGET', KEYS[1], 'status')
if not status or not cjson.decode(ARGV[1])[cjson.decode(status)] then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 4))
if ARGV[2] ~= '' then redis.call('EXPIRE', KEYS[1], ARGV[2]) end
redis.call('PUBLISH', ARGV[3], 'changed')
return 1
