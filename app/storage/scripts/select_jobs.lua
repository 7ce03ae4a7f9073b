-- Selects jobs by their status without sending the records of all others. Ids whose record has expired are dropped.
--
-- KEYS    1 jobs
-- ARGV    1 JSON: job_prefix, unwanted ({status as it is stored: true})  2… ids
-- Returns the ids whose status is not among the unwanted ones, in their order; also those of records that can't be read.
local given = cjson.decode(ARGV[1])
local selected = {}
for i = 2, #ARGV do
  local job = given.job_prefix .. ARGV[i]
  -- False without a status; the error of a key of another type is a table.
  local status = redis.pcall('HGET', job, 'status')
  if not status and redis.call('EXISTS', job) == 0 then
    redis.call('ZREM', KEYS[1], ARGV[i])
  elseif type(status) ~= 'string' or not given.unwanted[status] then
    selected[#selected + 1] = ARGV[i]
  end
end
return selected
