-- Changes a job's record if its status allows it, and publishes the change. The end of a job, sent again because its
-- answer was lost, changes nothing.
--
-- KEYS    1 job
-- ARGV    1 JSON: allowed ({status: true}), channel, fields (names and JSON values), ttl_s (absent: no expiry),
--         ended_by (that of the fields, in an end; no other call has the same)
-- Returns 1 if the record was changed by this call, else 0.
-- Needs   job
local change = cjson.decode(ARGV[1])
if change.ended_by and redis.pcall('HGET', KEYS[1], 'ended_by') == change.ended_by then return 1 end
return change_job(KEYS[1], change.channel, change.allowed, change.fields, change.ttl_s) and 1 or 0
