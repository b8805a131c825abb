-- readdir {ino, after, count} -> at the end (1 or 0), its own attributes ('' for the trash), name, cookie, ino, attributes,
-- name, ...
-- Entries in the order of their cookies, from the first above `after`. An entry keeps its cookie
-- as long as it is there, so a scan meets it once.
read('readdir', { ino = 'ino', after = 'count', count = 'count' }, function(c, a)
  local inode, count = c:inode(a.ino), max(1, min(a.count, LIMIT.names))
  if c:is_trash(a.ino) then return c:list_trash(a.after, count) end
  if not inode then return { ESTALE } end
  if not is(inode[MODE], S_IFDIR) then return { ENOTDIR } end
  local names = call('ZRANGEBYSCORE', c:key('n', a.ino), '(' .. text(a.after), '+inf', 'LIMIT', 0, count)
  local reply = { 0, #names < count and 1 or 0, c:attributes(a.ino) }
  if #names == 0 then return reply end
  local entries, keys, at = call('HMGET', c:key('d', a.ino), unpack(names)), {}, 3
  for i = 1, #names do
    entries[i] = unpack_value(entries[i])
    keys[i] = c:key('i', entries[i][1])
  end
  local attributes = call('MGET', unpack(keys))
  for i = 1, #names do
    reply[at + 1], reply[at + 2], reply[at + 3], reply[at + 4] = names[i], entries[i][2], entries[i][1], attributes[i]
    at = at + 4
  end
  return reply
end)

-- readlink {ino} -> target
read('readlink', { ino = 'ino' }, function(c, a)
  local inode = c:inode(a.ino)
  if not inode then return { ESTALE } end
  if not is(inode[MODE], S_IFLNK) then return { EINVAL } end
  return { 0, inode[TARGET] }
end)
