-- Function: counts the examples that show their category.

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
