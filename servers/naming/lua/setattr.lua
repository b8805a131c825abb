-- setattr {ino, mode?, uid?, gid?, size?, atime?, mtime?} -> attributes, more
-- A time is {seconds, nanoseconds}, or true for now. `more` is 1 when so many chunks had to go
-- that the file is not yet cut to `size`: call again.
local function set_time(c, inode, field, time)
  if not time then return end
  if time == true then time = { c.s, c.ns } end
  inode[field], inode[field + 1] = time[1], time[2]
end

mutation('setattr', { frees = true },
  { ino = 'ino', mode = 'mode?', uid = 'id?', gid = 'id?', size = 'size?', atime = 'time?', mtime = 'time?' },
  function(c, a)
    local inode, more = c:inode(a.ino), 0
    if not inode then return ESTALE end
    if a.size then
      if not is(inode[MODE], S_IFREG) then return is(inode[MODE], S_IFDIR) and EISDIR or EINVAL end
      if a.size < 0 then return EINVAL end
      if a.size > LIMIT.file then return EFBIG end
    end

    if a.mode then inode[MODE] = bit.band(inode[MODE], S_IFMT) + bit.band(a.mode, 0xFFF) end
    if a.uid or a.gid then
      inode[UID], inode[GID] = a.uid or inode[UID], a.gid or inode[GID]
      if not a.mode and not is(inode[MODE], S_IFDIR) then -- chown(2): the new owner did not set these
        local drop = S_ISUID + (bit.band(inode[MODE], S_IXGRP) ~= 0 and S_ISGID or 0)
        inode[MODE] = bit.band(inode[MODE], bit.bnot(drop))
      end
    end
    c:touch(inode)
    if a.size then
      local reached = a.size < inode[SIZE] and c:cut_file(a.ino, inode, a.size) or a.size
      more = reached > a.size and 1 or 0
      inode[SIZE] = reached
      inode[VERSION] = c:next_seq()
      c:modify(inode)
    end
    set_time(c, inode, ATIME, a.atime)
    set_time(c, inode, MTIME, a.mtime)
    c:keep(a.ino)
    return c:done('setattr', { a.ino }, {}, c:attributes(a.ino), more)
  end)
