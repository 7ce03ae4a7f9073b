-- Functions: change, supersede and add the record of a job.

-- Changes a record if its status is in `allowed` ({status = true}), and publishes the change.
-- fields: names and JSON values. ttl_s: seconds until the record expires, or nil. Returns true if it was changed.
local function change_job(job, channel, allowed, fields, ttl_s)
  local status = redis.call('HGET', job, 'status')
  if not status or not allowed[cjson.decode(status)] then return false end
  redis.call('HSET', job, unpack(fields))
  if ttl_s then redis.call('EXPIRE', job, ttl_s) end
  redis.call('PUBLISH', channel, 'changed')
  return true
end

-- Supersedes the job that a category waits for. Returns its id, or '' if there is none or it has ended.
-- superseded: job_prefix, channel_prefix, fields and ttl_s of its record.
local function supersede_job(category, superseded)
  local id = redis.call('HGET', category, 'job')
  if not id then return '' end
  local job, channel = superseded.job_prefix .. id, superseded.channel_prefix .. id
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
