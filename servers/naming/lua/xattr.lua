-- Extended attributes: getxattr(2), setxattr(2), listxattr(2), removexattr(2).

-- getxattr {ino, name} -> value
read('getxattr', { ino = 'ino', name = 'bytes' }, function(c, a)
  if not c:inode(a.ino) then return { ESTALE } end
  local value = call('HGET', c:key('a', a.ino), a.name)
  if not value then return { ENODATA } end
  return { 0, value }
end)

-- listxattr {ino} -> names
read('listxattr', { ino = 'ino' }, function(c, a)
  if not c:inode(a.ino) then return { ESTALE } end
  return { 0, call('HKEYS', c:key('a', a.ino)) }
end)

local CREATE, REPLACE = 1, 2

-- setxattr {ino, name, value, flags} -> attributes; flags 1 CREATE, 2 REPLACE
mutation('setxattr', {}, { ino = 'ino', name = 'bytes', value = 'bytes', flags = 'count' }, function(c, a)
  local inode = c:inode(a.ino)
  if not inode then return ESTALE end
  if a.name == '' or #a.name > LIMIT.xattr_name then return ERANGE end
  if #a.value > LIMIT.xattr_value then return E2BIG end
  if a.flags > REPLACE then return EINVAL end
  local key = c:key('a', a.ino)
  local there = call('HEXISTS', key, a.name) == 1
  if there and a.flags == CREATE then return EEXIST end
  if not there and a.flags == REPLACE then return ENODATA end
  if not there then
    local total = #a.name + 1
    for _, name in ipairs(call('HKEYS', key)) do total = total + #name + 1 end
    if total > LIMIT.xattr_total then return ENOSPC end
    inode[XATTRS] = inode[XATTRS] + 1
  end
  call('HSET', key, a.name, a.value)
  c:touch(inode)
  c:keep(a.ino)
  return c:done('setxattr', { a.ino }, {}, c:attributes(a.ino))
end)

-- removexattr {ino, name} -> attributes
mutation('removexattr', { frees = true }, { ino = 'ino', name = 'bytes' }, function(c, a)
  local inode = c:inode(a.ino)
  if not inode then return ESTALE end
  local key = c:key('a', a.ino)
  if call('HDEL', key, a.name) == 0 then return ENODATA end
  inode[XATTRS] = inode[XATTRS] - 1
  c:touch(inode)
  c:keep(a.ino)
  return c:done('removexattr', { a.ino }, {}, c:attributes(a.ino))
end)
