-- Function: counts the examples that show their category.

-- ids: list of the examples' ids. prefix: of their keys. The mask of an example without the category has no area.
local function examples_that_show_it(ids, prefix)
  local count = 0
  for _, id in ipairs(redis.call('LRANGE', ids, 0, -1)) do
    if redis.call('HGET', prefix .. id, 'area') ~= '0' then count = count + 1 end
  end
  return count
end
