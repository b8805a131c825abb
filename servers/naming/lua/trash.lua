-- Removed files are kept for a while: as inodes without a name, whose due time is far away. See keyspace.py.
-- Only content that somebody removed by its name and that nobody had open: what is overwritten or was a temporary
-- file of a running program is not kept. Of a removed directory its name is kept, for the paths of what was in it.
-- The record of one is {parent, name, when, stored bytes, is it a directory}.

-- trash {after_ms, count} -> ino, due ms, record, ...: by due time, from there on
read('trash', { after_ms = 'count', count = 'count' }, function(c, a)
  local reply = { 0 }
  local rows = call('ZRANGEBYSCORE', c.K .. ':trash', text(a.after_ms), '+inf', 'WITHSCORES', 'LIMIT', 0, text(a.count))
  for i = 1, #rows, 2 do
    local n = #reply
    reply[n + 1], reply[n + 2], reply[n + 3] = tonumber(rows[i]), tonumber(rows[i + 1]),
      call('HGET', c.K .. ':trash_from', rows[i])
  end
  return reply
end)

-- restore {ino, parent, name} -> attributes, the parent's; the removed file has this name now
mutation('restore', {}, { ino = 'ino', parent = 'ino', name = 'bytes' }, function(c, a)
  local inode = c:inode(a.ino)
  if not inode or inode[NLINK] ~= 0 or not is(inode[MODE], S_IFREG) or not c:is_in_trash(a.ino) then return ENOENT end
  local directory, problem = room_for(c, a.parent, a.name)
  if not directory then return problem end
  c:out_of_trash(text(a.ino))
  call('ZREM', c.K .. ':orphans', text(a.ino))
  inode[NLINK] = 1
  c:touch(inode)
  c:keep(a.ino)
  c:put_entry(a.parent, a.name, a.ino, c:cookie())
  c:touch_directory(a.parent)
  c:add('files', 1)
  return c:done('restore', { a.parent, a.ino }, { a.name }, c:attributes(a.ino), c:attributes(a.parent))
end)

-- empty_trash {count, bytes} -> files, bytes: of the oldest so many are let go of now, till so many bytes are reached
internal('empty_trash', {}, { count = 'count', bytes = 'count' }, function(c, a)
  local files, bytes = 0, 0
  if c.safe then return { 0, 0, 0 } end
  for _, ino in ipairs(call('ZRANGE', c.K .. ':trash', 0, min(a.count, LIMIT.extents) - 1)) do
    if bytes >= a.bytes then break end
    files, bytes = files + 1, bytes + c:out_of_trash(ino)
    if call('ZSCORE', c.K .. ':orphans', ino) then c:orphan(tonumber(ino), 0) end
  end
  return { 0, files, bytes }
end)
