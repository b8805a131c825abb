-- Who has which file open, so that an unlinked file lives until its last close.

-- The value is the op that opened it last: a release that was sent before and comes late is not its close.
function Call:open(ino)
  call('HSET', self:key('o', ino), self.session, text(self.n))
  call('SADD', self.K .. ':so:' .. self.session, text(ino))
end

function Call:close(ino)
  local opened = call('HGET', self:key('o', ino), self.session)
  if not opened or tonumber(opened) > self.n then return end
  call('HDEL', self:key('o', ino), self.session)
  call('SREM', self.K .. ':so:' .. self.session, text(ino))
end

-- The map of chunks [first, first + count): index, segments, index, segments, ...
function Call:map(ino, inode, first, count)
  local key, reply = self:key('m', ino), {}
  count = min(count, LIMIT.chunks, floor((inode[SIZE] - 1) / inode[CHUNK]) + 1 - first)
  if count <= 0 then return reply end
  local fields = {}
  for i = 1, count do fields[i] = text(first + i - 1) end
  local rows = call('HMGET', key, unpack(fields))
  for i = 1, count do
    if rows[i] then
      reply[#reply + 1] = first + i - 1
      reply[#reply + 1] = rows[i]
    end
  end
  return reply
end

local function opened(c, a)
  local inode = c:inode(a.ino)
  if not inode then return { ESTALE } end
  return { 0, c:attributes(a.ino), c:map(a.ino, inode, 0, a.chunks) }
end

-- look {ino, chunks} -> attributes, map of the first `chunks` chunks
-- What a mount needs to open a file. It tells who has it open with `opens`, shortly after: the
-- grace of what is unlinked meanwhile is longer than that.
read('look', { ino = 'ino', chunks = 'count' }, function(c, a)
  if not c:inode(a.ino) then return { ESTALE } end
  return opened(c, a)
end)

-- opens {opened: inos, released: inos} -> the inodes that are not there to be opened
mutation('opens', { frees = true, harmless = true }, { opened = 'list', released = 'list' }, function(c, a)
  if #a.opened + #a.released > LIMIT.extents then return E2BIG end
  if not numbers(a.opened) or not numbers(a.released) then return EINVAL end
  local gone = {}
  for _, ino in ipairs(a.released) do c:close(ino) end
  for _, ino in ipairs(a.opened) do
    if call('EXISTS', c:key('i', ino)) == 1 then c:open(ino) else gone[#gone + 1] = ino end
  end
  return c:remember(pack({ 0, gone }))
end)

-- open {ino, chunks} -> attributes, map of the first `chunks` chunks
-- Remembered without its reply, which may be long and is as good when made again.
mutation('open', { frees = true, harmless = true, again = opened }, { ino = 'ino', chunks = 'count' }, function(c, a)
  if not c:inode(a.ino) then return ESTALE end
  c:open(a.ino)
  c:remember('')
  return pack(opened(c, a))
end)

-- release {ino}: the session's last handle is closed
mutation('release', { frees = true, harmless = true }, { ino = 'ino' }, function(c, a)
  c:close(a.ino)
  return c:remember(pack({ 0 }))
end)

-- locate {ino, first, count} -> data version, size, map of those chunks
read('locate', { ino = 'ino', first = 'count', count = 'count' }, function(c, a)
  local inode = c:inode(a.ino)
  if not inode then return { ESTALE } end
  return { 0, inode[VERSION], inode[SIZE], c:map(a.ino, inode, a.first, a.count) }
end)
