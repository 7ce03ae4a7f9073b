-- Points a category at a version that is still kept.
--
-- KEYS    1 category  2 versions
-- ARGV    1 version  2 JSON: seen (see is_unchanged)
-- Returns 1, or 0 if that version is not kept; nil if the category has changed.
-- Needs   unchanged
if not is_unchanged(KEYS[1], cjson.decode(ARGV[2]).seen) then return false end
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'adapter_version', ARGV[1])
return 1
