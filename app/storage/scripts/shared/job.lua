-- Functions: change, supersede and add the record of a job.

-- Status of a record; nil if there is none, or it can't be read.
local function status_of(job)
  local stored = redis.pcall('HGET', job, 'status')
  if type(stored) ~= 'string' then return nil end
  local readable, status = pcall(cjson.decode, stored)
  return readable and type(status) == 'string' and status or nil
end

-- Changes a record if its status is in `allowed` ({status = true}), and publishes the change.
-- fields: names and JSON values. ttl_s: seconds until the record expires, or nil. Returns true if it was changed.
local function change_job(job, channel, allowed, fields, ttl_s)
  local status = status_of(job)
  if not status or not allowed[status] then return false end
  redis.call('HSET', job, unpack(fields))
  if ttl_s then redis.call('EXPIRE', job, ttl_s) end
  redis.call('PUBLISH', channel, 'changed')
  return true
end

-- Supersedes the job that a category waits for. Returns its id, or '' if there is none or it has ended.
-- superseded: job_prefix, channel_prefix, fields and ttl_s of its record.
local function supersede_job(category, superseded)
  local id = redis.pcall('HGET', category, 'job')
  if type(id) ~= 'string' then return '' end
  local job, channel = superseded.job_prefix .. id, superseded.channel_prefix .. id
  -- A record that can't be read never ends by itself.
  if not status_of(job) then redis.call('EXPIRE', job, superseded.ttl_s) end
  local allowed = {queued = true, running = true}
  return change_job(job, channel, allowed, superseded.fields, superseded.ttl_s) and id or ''
end

-- Writes the record of a new job and makes it the one that the category waits for.
-- keys: category, job, jobs. job: id, time, fields of its record without the generation.
local function add_job(keys, job, generation)
  redis.call('HSET', keys.job, 'generation', generation, unpack(job.fields))
  redis.call('ZADD', keys.jobs, job.time, job.id)
  redis.call('HSET', keys.category, 'generation', generation, 'job', job.id)
end
