-- lookup {parent, name} -> ino, attributes
read('lookup', { parent = 'ino', name = 'bytes' }, function(c, a)
  local ino = c:entry(a.parent, a.name)
  if ino then return { 0, ino, call('GET', c:key('i', ino)) } end
  local hidden, attributes = c:hidden(a.parent, a.name)
  if hidden then return { 0, hidden, attributes } end
  if #a.name > LIMIT.name then return { ENAMETOOLONG } end
  local _, problem = c:directory(a.parent)
  return { problem or ENOENT }
end)

-- resolve {path: names} -> ino, attributes; from the root, symlinks are not followed
-- In SAFE mode a name that is not here may be one of those that are missing: EIO.
read('resolve', { path = 'list' }, function(c, a)
  if #a.path > LIMIT.path or not texts(a.path) then return { ENAMETOOLONG } end
  local ino = 1
  for _, name in ipairs(a.path) do
    local _, problem = c:directory(ino)
    if problem then return { problem } end
    ino = c:entry(ino, name)
    if not ino then return { #name > LIMIT.name and ENAMETOOLONG or c.safe and EIO or ENOENT } end
  end
  return { 0, ino, call('GET', c:key('i', ino)) }
end)
