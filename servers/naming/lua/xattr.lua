-- Extended attributes: getxattr(2), setxattr(2), listxattr(2), removexattr(2).

-- How a file, or what is made in a directory, is stored: attributes that are always there and never listed.
local LAYOUT = { ['user.dcs.replicas'] = REPLICAS, ['user.dcs.chunk_size'] = CHUNK }

local function has_layout(inode) return is(inode[MODE], S_IFREG) or is(inode[MODE], S_IFDIR) end

-- So many copies are asked for; those of a file are made, or dropped, in the background.
function Call:ask_copies(ino, inode, count)
  inode[REPLICAS] = count
  if is(inode[MODE], S_IFREG) then call('HSET', self.K .. ':recount', text(ino), text(self:next_seq())) end
end

-- Returns the errno of what is wrong. A file's chunk size is fixed when it is made.
local function set_layout(c, ino, inode, name, value)
  local number = value:match('^[0-9]+$') and #value < 16 and tonumber(value)
  if not has_layout(inode) then return EPERM end
  if not number then return EINVAL end
  if name == 'user.dcs.replicas' then
    if number < 1 or number > LIMIT.replicas then return EINVAL end
    c:ask_copies(ino, inode, number)
  else
    local is_size = number >= LIMIT.chunk_low and number <= LIMIT.chunk_high and bit.band(number, number - 1) == 0
    if not is_size or not is(inode[MODE], S_IFDIR) then return EINVAL end
    inode[CHUNK] = number
  end
end

-- getxattr {ino, name} -> value
read('getxattr', { ino = 'ino', name = 'bytes' }, function(c, a)
  local inode = c:inode(a.ino)
  if not inode then return { ESTALE } end
  if LAYOUT[a.name] and has_layout(inode) then return { 0, text(inode[LAYOUT[a.name]]) } end
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
  if LAYOUT[a.name] then
    local problem = set_layout(c, a.ino, inode, a.name, a.value)
    if problem then return problem end
    c:touch(inode)
    c:keep(a.ino)
    return c:done('setxattr', { a.ino }, {}, c:attributes(a.ino))
  end
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
  if LAYOUT[a.name] then return EPERM end
  local key = c:key('a', a.ino)
  if call('HDEL', key, a.name) == 0 then return ENODATA end
  inode[XATTRS] = inode[XATTRS] - 1
  c:touch(inode)
  c:keep(a.ino)
  return c:done('removexattr', { a.ino }, {}, c:attributes(a.ino))
end)
