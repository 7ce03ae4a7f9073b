-- Function: stores an adapter, points the category at it and deletes the oldest of its other versions.
--
-- Imports may end in another order than they began, so the adapter in use is not always the newest version: it is
-- never deleted here.
--
-- keys    category, versions, adapter
-- adapter version, info (JSON), tensors (safetensors), kept (how many versions), prefix (of the adapters' keys), sha256
--         (of the tensors; a field of the category, since earlier releases can't read it in the info)
-- Returns nothing.
local function use_adapter(keys, adapter, generation)
  redis.call('SET', keys.adapter, adapter.tensors)
  redis.call('HSET', keys.versions, adapter.version, adapter.info)
  redis.call('HSET', keys.category, 'adapter_version', adapter.version, 'adapter_generation', generation,
    'result_version', adapter.version, 'sha256_' .. adapter.version, adapter.sha256)
  local versions = redis.call('HKEYS', keys.versions)
  table.sort(versions, function(a, b) return (tonumber(a) or 0) > (tonumber(b) or 0) end)
  local kept = 1
  for _, version in ipairs(versions) do
    if version ~= adapter.version then
      kept = kept + 1
      if kept > tonumber(adapter.kept) then
        redis.call('HDEL', keys.versions, version)
        redis.call('HDEL', keys.category, 'sha256_' .. version)
        redis.call('DEL', adapter.prefix .. version)
      end
    end
  end
end
