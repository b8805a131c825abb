-- setattr {ino, mode?, uid?, gid?, size?, atime?, mtime?, strip?} -> attributes, more
-- A time is {seconds, nanoseconds}, or true for now. `strip`: a user without privileges changes the content.
-- `more` is 1 when so many chunks had to go that the file is not yet cut to `size`: call again.

-- What was set for the owner's program does not hold for another owner, or for other content. Without the
-- group's right to execute, setgid is no privilege, but an old sign for locking.
local function strip(inode)
  local drop = S_ISUID + (bit.band(inode[MODE], S_IXGRP) ~= 0 and S_ISGID or 0)
  inode[MODE] = bit.band(inode[MODE], bit.bnot(drop))
end

local function set_time(c, inode, field, time)
  if not time then return end
  if time == true then time = { c.s, c.ns } end
  inode[field], inode[field + 1] = time[1], time[2]
end

mutation('setattr', { frees = true },
  { ino = 'ino', mode = 'mode?', uid = 'id?', gid = 'id?', size = 'size?', atime = 'time?', mtime = 'time?',
    strip = 'flag' },
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
      if not a.mode and not is(inode[MODE], S_IFDIR) then strip(inode) end
    end
    if a.strip then strip(inode) end
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

-- accessed {times: ino, seconds, nanoseconds, ino, ...}: when inodes were last read
-- Nothing else of an inode moves. It is told late, so it stands back behind a later time, and is worth no log entry.
mutation('accessed', { frees = true }, { times = 'list' }, function(c, a)
  if #a.times % 3 ~= 0 or #a.times > 3 * LIMIT.names then return EINVAL end
  for i = 1, #a.times, 3 do
    if not (KIND.ino(a.times[i]) and KIND.time({ a.times[i + 1], a.times[i + 2] })) then return EINVAL end
  end
  for i = 1, #a.times, 3 do
    local ino, s, ns = a.times[i], a.times[i + 1], a.times[i + 2]
    local inode = c:inode(ino)
    if inode and (s > inode[ATIME] or (s == inode[ATIME] and ns > inode[ATIME + 1])) then
      inode[ATIME], inode[ATIME + 1] = s, ns
      c:keep(ino)
    end
  end
  c:save()
  return c:remember(pack({ 0 }))
end)
