-- Who has which file open, so that an unlinked file lives until its last close.

function Call:open(ino)
  local field = string.format('%d', ino)
  call('SADD', self:key('o', ino), self.session)
  call('SADD', self.K .. ':so:' .. self.session, field)
end

-- The map of chunks [first, first + count): index, segments, index, segments, ...
function Call:map(ino, inode, first, count)
  local key, reply = self:key('m', ino), {}
  count = min(count, LIMIT.chunks, floor((inode[SIZE] - 1) / inode[CHUNK]) + 1 - first)
  if count <= 0 then return reply end
  local fields = {}
  for i = 1, count do fields[i] = string.format('%d', first + i - 1) end
  local rows = call('HMGET', key, unpack(fields))
  for i = 1, count do
    if rows[i] then
      reply[#reply + 1] = first + i - 1
      reply[#reply + 1] = rows[i]
    end
  end
  return reply
end

-- open {ino, chunks} -> attributes, map of the first `chunks` chunks
mutation('open', { frees = true, harmless = true }, function(c, a)
  local inode = c:inode(a.ino)
  if not inode then return ESTALE end
  c:open(a.ino)
  return c:remember(pack({ 0, c:attributes(a.ino), c:map(a.ino, inode, 0, a.chunks) }))
end)

-- release {ino}: the session's last handle is closed
mutation('release', { frees = true, harmless = true }, function(c, a)
  call('SREM', c:key('o', a.ino), c.session)
  call('SREM', c.K .. ':so:' .. c.session, string.format('%d', a.ino))
  return c:remember(pack({ 0 }))
end)

-- locate {ino, first, count} -> data version, size, map of those chunks
read('locate', function(c, a)
  local inode = c:inode(a.ino)
  if not inode then return { ESTALE } end
  return { 0, inode[VERSION], inode[SIZE], c:map(a.ino, inode, a.first, a.count) }
end)
