-- setattr {ino, mode?, uid?, gid?, size?, atime?, mtime?} -> attributes, more
-- A time is {seconds, nanoseconds}, or true for now. `more` is 1 when so many chunks had to go
-- that the file is not yet cut to `size`: call again.
mutation('setattr', { frees = true }, function(c, a)
  local inode = c:inode(a.ino)
  if not inode then return ESTALE end
  if a.size and not is(inode[MODE], S_IFREG) then return is(inode[MODE], S_IFDIR) and EISDIR or EINVAL end
  if a.size and (a.size < 0 or a.size > LIMIT.file) then return EFBIG end

  local more = 0
  if a.mode then inode[MODE] = bit.band(inode[MODE], S_IFMT) + bit.band(a.mode, 0xFFF) end
  if a.uid or a.gid then
    inode[UID], inode[GID] = a.uid or inode[UID], a.gid or inode[GID]
    if not a.mode and not is(inode[MODE], S_IFDIR) then -- chown(2): the new owner did not set these
      local drop = S_ISUID + (bit.band(inode[MODE], S_IXGRP) ~= 0 and S_ISGID or 0)
      inode[MODE] = bit.band(inode[MODE], bit.bnot(drop))
    end
  end
  if a.size then
    if a.size < inode[SIZE] then
      local reached = c:cut_file(a.ino, inode, a.size)
      more = reached > a.size and 1 or 0
      inode[SIZE] = reached
    else
      inode[SIZE] = a.size
    end
    inode[VERSION] = c:next_seq()
    c:touch(inode, MTIME)
  end
  for field, time in pairs({ [ATIME] = a.atime or false, [MTIME] = a.mtime or false }) do
    if type(time) == 'table' then
      inode[field], inode[field + 1] = time[1], time[2]
    elseif time then
      inode[field], inode[field + 1] = c.s, c.ns
    end
  end
  c:touch(inode, CTIME)
  c:keep(a.ino)
  return c:done('setattr', { a.ino }, {}, c:attributes(a.ino), more)
end)
