-- Function: tells whether a category is what a caller has seen.

-- seen: generation and adapter version ('' for none) that the caller has seen; nil if they do not matter.
local function is_unchanged(category, seen)
  if not seen then return true end
  local now = redis.call('HMGET', category, 'generation', 'adapter_version')
  return (now[1] or '0') == seen[1] and (now[2] or '') == seen[2]
end
