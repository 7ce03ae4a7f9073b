-- Changes a job's record if its status allows it, and publishes the change.
--
-- KEYS    1 job
-- ARGV    1 JSON: allowed ({status: true}), channel, fields (names and JSON values), ttl_s (absent: no expiry)
-- Returns 1 if the record was changed, else 0.
-- Needs   job
local change = cjson.decode(ARGV[1])
return change_job(KEYS[1], change.channel, change.allowed, change.fields, change.ttl_s) and 1 or 0
