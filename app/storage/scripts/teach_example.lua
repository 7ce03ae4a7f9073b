-- Adds an example to a category, or replaces one or all of its examples, and records the job that tunes on them:
-- example, generation, record and the end of the previous job in one step. Sent again because its answer was lost, it
-- changes nothing.
--
-- KEYS    1 category  2 counters  3 example ids  4 example  5 categories  6 job  7 jobs
-- ARGV    1 JSON: category_id, name, prompts, created_at, time, example_id, example_prefix, absent (true for a photo
--           without the category), replace, once (true to refuse an example that the category has already), instead
--           (id of the example to replace), max_examples, max_prompts, job (see add_job), superseded (see supersede_job)
--         2… names and values of the example's fields
-- Returns {generation, id of the job that was superseded or ''}, or why it is refused: 'full' if the category has as
--         many examples as it may, 'wordy' if the new words would be more than it may have, 'unknown' for a photo
--         without the category if no example shows it, 'known' if it has an example of the same photo and mask.
-- Needs   job, examples
local given = cjson.decode(ARGV[1])

local written = redis.call('HGET', KEYS[6], 'generation')
if written then return {tonumber(written), ''} end
local old_ids = redis.call('LRANGE', KEYS[3], 0, -1)
if given.absent and examples_that_show_it(KEYS[3], given.example_prefix) == 0 then return 'unknown' end
local replaced = given.replace and old_ids or {}
if given.instead and redis.call('LPOS', KEYS[3], given.instead) then
  replaced = {given.instead}
elseif given.once and has_example(old_ids, given.example_prefix, fields_of(ARGV, 2)) then
  return 'known'
end
if #old_ids - #replaced >= given.max_examples then return 'full' end

-- What may be unreadable comes first: the changes of a script that fails are not undone.
local prompts = given.replace and {} or cjson.decode(redis.call('HGET', KEYS[1], 'prompts') or '[]')
local had = #prompts
local known = {}
-- Lua knows the lower case of A to Z alone.
for _, word in ipairs(prompts) do known[word:lower()] = true end
for _, word in ipairs(given.prompts) do
  if not known[word:lower()] then prompts[#prompts + 1] = word end
end
if #prompts > math.max(had, given.max_prompts) then return 'wordy' end
local generation = redis.call('HINCRBY', KEYS[2], 'generation', 1)

redis.call('HSETNX', KEYS[1], 'name', given.name)
redis.call('HSETNX', KEYS[1], 'created_at', given.created_at)
redis.call('ZADD', KEYS[5], 'NX', given.time, given.category_id)
-- cjson writes an empty table as an object.
redis.call('HSET', KEYS[1], 'prompts', #prompts == 0 and '[]' or cjson.encode(prompts))

for _, id in ipairs(replaced) do
  redis.call('DEL', given.example_prefix .. id)
  redis.call('LREM', KEYS[3], 1, id)
end
redis.call('RPUSH', KEYS[3], given.example_id)
redis.call('HSET', KEYS[4], unpack(ARGV, 2))

local superseded = supersede_job(KEYS[1], given.superseded)
add_job({category = KEYS[1], job = KEYS[6], jobs = KEYS[7]}, given.job, generation)
return {generation, superseded}
