-- Files that appear whole: a stub that has no name, filled by commits, published in one step.

-- stub {mode, uid, gid, parent?, chunk_size?, lasts_ms?} -> ino, attributes
-- Forgotten with the session that made it; with `lasts_ms`, after that time, whatever becomes of the session.
-- Chunk size and copies are those of `parent`, where it is to be published; of the top directory where that is not
-- said, or no directory now. The chunk size stays, whatever becomes of the parent or where it is published.
local MADE_LIKE = { mode = 'mode', uid = 'id', gid = 'id', parent = 'ino?', chunk_size = 'count?', lasts_ms = 'count?' }
mutation('stub', {}, MADE_LIKE, function(c, a)
  local directory = a.parent and c:directory(a.parent) or c:inode(1)
  local chunk = a.chunk_size or directory[CHUNK]
  if chunk < LIMIT.chunk_low or chunk > LIMIT.chunk_high or bit.band(chunk, chunk - 1) ~= 0 then return EINVAL end
  local ino = c:add('next_ino', 1)
  c:add_inode(ino, {
    S_IFREG + bit.band(a.mode, 0xFFF), a.uid, a.gid, 0, 0, c.s, c.ns, c.s, c.ns, c.s, c.ns,
    0, chunk, 0, c:next_seq(), 0, 0, '', directory[REPLICAS], 0,
  })
  c:orphan(ino, a.lasts_ms or c:setting('orphan_grace_ms'))
  if not a.lasts_ms then c:open(ino) end
  return c:done('stub', { ino }, {}, ino, c:attributes(ino))
end)

-- abandon {ino} -> ; a stub that waits to be filled is forgotten now. ENOENT for anything else without a name.
mutation('abandon', { frees = true }, { ino = 'ino' }, function(c, a)
  local inode, due = c:inode(a.ino), call('ZSCORE', c.K .. ':orphans', text(a.ino))
  if not inode then return ESTALE end
  if inode[NLINK] ~= 0 then return EINVAL end
  if tonumber(due) <= c.ms + c:setting('orphan_grace_ms') or c:is_in_trash(a.ino) then return ENOENT end
  c:orphan(a.ino, 0)
  return c:done('abandon', { a.ino }, {})
end)

-- publish {ino, parent, name, size, overwrite, version?} -> attributes, replaced ino (0 for none)
-- The stub becomes the file of that name, of exactly that size; no reader sees it half. It is closed
-- for the session. With `version`, EAGAIN when its content is another by now.
local WANTS = { ino = 'ino', parent = 'ino', name = 'bytes', size = 'size', overwrite = 'flag', version = 'count?' }
mutation('publish', {}, WANTS, function(c, a)
  local inode = c:inode(a.ino)
  if not inode then return ESTALE end
  if inode[NLINK] ~= 0 or not is(inode[MODE], S_IFREG) or c:is_in_trash(a.ino) then return EINVAL end
  if a.version and a.version ~= inode[VERSION] then return EAGAIN end
  local directory, problem = c:directory(a.parent)
  if not directory then return problem end
  problem = name_errno(a.name)
  if problem then return problem end
  if a.size > LIMIT.file then return EFBIG end
  if a.size < inode[SIZE] then return EINVAL end
  local target, cookie = c:entry(a.parent, a.name)
  if target then
    if not a.overwrite then return EEXIST end
    if is(c:inode(target)[MODE], S_IFDIR) then return EISDIR end
    c:unlinked(target)
  end
  inode[NLINK], inode[SIZE] = 1, a.size
  if inode[REPLICAS] ~= directory[REPLICAS] then c:ask_copies(a.ino, inode, directory[REPLICAS]) end
  c:touch(inode)
  c:keep(a.ino)
  c:close(a.ino)
  call('ZREM', c.K .. ':orphans', text(a.ino))
  c:add('files', 1)
  c:put_entry(a.parent, a.name, a.ino, cookie or c:cookie())
  c:touch_directory(a.parent)
  return c:done('publish', { a.parent, a.ino }, { a.name }, c:attributes(a.ino), target or 0)
end)
