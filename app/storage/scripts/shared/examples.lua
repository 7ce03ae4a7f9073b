-- Functions: count the examples that show their category, and find an example of the same photo and mask.

-- ids: list of the examples' ids. prefix: of their keys. The mask of an example without the category has no area; an
-- example under a key of another type is not counted.
local function examples_that_show_it(ids, prefix)
  local count = 0
  for _, id in ipairs(redis.call('LRANGE', ids, 0, -1)) do
    local area = redis.pcall('HGET', prefix .. id, 'area')
    if area ~= '0' and type(area) ~= 'table' then count = count + 1 end
  end
  return count
end

-- Names and values in turn, as a table.
local function fields_of(values, first)
  local fields = {}
  for i = first, #values, 2 do fields[values[i]] = values[i + 1] end
  return fields
end

-- True if one of the examples has this photo and mask. fields: of the example.
local function has_example(ids, prefix, fields)
  for _, id in ipairs(ids) do
    local known = redis.pcall('HMGET', prefix .. id, 'sha256', 'area')
    if known[1] == fields.sha256 and known[2] == fields.area
        and redis.call('HGET', prefix .. id, 'mask') == fields.mask then
      return true
    end
  end
  return false
end
