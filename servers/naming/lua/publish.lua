-- Files that appear whole: a stub that has no name, filled by commits, published in one step.

-- stub {mode, uid, gid, chunk_size?} -> ino, attributes
-- Forgotten with its session, or after a day.
local STUB_MS = 24 * 3600 * 1000
mutation('stub', {}, function(c, a)
  local root = c:inode(1)
  local ino = call('HINCRBY', c.K .. ':volume', 'next_ino', 1)
  c:add_inode(ino, {
    S_IFREG + bit.band(a.mode, 0xFFF), a.uid, a.gid, 0, 0, c.s, c.ns, c.s, c.ns, c.s, c.ns,
    0, a.chunk_size or root[CHUNK], 0, c:next_seq(), 0, 0, '', root[REPLICAS], 0,
  })
  call('ZADD', c.K .. ':orphans', c.ms + STUB_MS, string.format('%d', ino))
  c:open(ino)
  return c:done('stub', { ino }, {}, ino, c:attributes(ino))
end)

-- publish {ino, parent, name, size, overwrite} -> attributes, replaced ino (0 for none)
-- The stub becomes the file of that name, of exactly that size; no reader sees it half.
mutation('publish', {}, function(c, a)
  local inode = c:inode(a.ino)
  if not inode then return ESTALE end
  if inode[NLINK] ~= 0 or not is(inode[MODE], S_IFREG) then return EINVAL end
  local directory, problem = c:directory(a.parent)
  if not directory then return problem end
  problem = name_errno(a.name)
  if problem then return problem end
  if a.size < inode[SIZE] or a.size > LIMIT.file then return EINVAL end
  local target, cookie = c:entry(a.parent, a.name)
  if target then
    if not a.overwrite then return EEXIST end
    if is(c:inode(target)[MODE], S_IFDIR) then return EISDIR end
    c:unlinked(target)
  end
  inode[NLINK], inode[SIZE] = 1, a.size
  c:touch(inode, CTIME)
  c:keep(a.ino)
  call('ZREM', c.K .. ':orphans', string.format('%d', a.ino))
  call('HINCRBY', c.K .. ':volume', 'files', 1)
  c:put_entry(a.parent, a.name, a.ino, cookie or c:cookie())
  c:touch_directory(a.parent)
  return c:done('publish', { a.parent, a.ino }, { a.name }, c:attributes(a.ino), target or 0)
end)
