-- lookup {parent, name} -> ino, attributes
read('lookup', function(c, a)
  local blob = call('HGET', c:key('d', a.parent), a.name)
  if blob then
    local ino = unpack_value(blob)[1]
    return { 0, ino, call('GET', c:key('i', ino)) }
  end
  if #a.name > LIMIT.name then return { ENAMETOOLONG } end
  local _, problem = c:directory(a.parent)
  return { problem or ENOENT }
end)

-- resolve {path: names} -> ino, attributes; from the root, symlinks are not followed
read('resolve', function(c, a)
  local ino = 1
  if #a.path > LIMIT.path then return { ENAMETOOLONG } end
  for _, name in ipairs(a.path) do
    local _, problem = c:directory(ino)
    if problem then return { problem } end
    ino = c:entry(ino, name)
    if not ino then return { ENOENT } end
  end
  local blob = call('GET', c:key('i', ino))
  if not blob then return { ENOENT } end
  return { 0, ino, blob }
end)
