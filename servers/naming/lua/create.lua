-- Making inodes: create, mknod, mkdir, symlink, link.

-- Checks that `name` may be made in `parent`. Returns the parent's inode, or nil and the errno.
local function room_for(c, parent, name)
  local directory, problem = c:directory(parent)
  if not directory then return nil, problem end
  problem = name_errno(name)
  if problem then return nil, problem end
  if c:entry(parent, name) then return nil, EEXIST end
  return directory
end

-- Makes an inode of `mode` under the name, the caller's or, where the directory is setgid, its group's.
-- Returns its number, it and the parent's inode; or nil and the errno.
local function make(c, a, mode)
  local directory, problem = room_for(c, a.parent, a.name)
  if not directory then return nil, problem end
  local gid, is_directory = a.gid, is(mode, S_IFDIR)
  if bit.band(directory[MODE], S_ISGID) ~= 0 then
    gid = directory[GID]
    if is_directory then mode = bit.bor(mode, S_ISGID) end
  end
  local ino = c:add('next_ino', 1)
  local inode = {
    mode, a.uid, gid, is_directory and 2 or 1, 0, c.s, c.ns, c.s, c.ns, c.s, c.ns,
    a.rdev or 0, directory[CHUNK], 0, c:next_seq(), 0, 0, '', directory[REPLICAS], is_directory and a.parent or 0,
  }
  c:add_inode(ino, inode)
  c:put_entry(a.parent, a.name, ino, c:cookie())
  c:touch_directory(a.parent)
  c:add(is_directory and 'directories' or 'files', 1)
  return ino, inode, directory
end

-- create {parent, name, mode, uid, gid} -> ino, attributes, the parent's, the parent's ctime before
mutation('create', {}, { parent = 'ino', name = 'bytes', mode = 'mode', uid = 'id', gid = 'id' }, function(c, a)
  local ino, problem = make(c, a, S_IFREG + bit.band(a.mode, 0xFFF))
  if not ino then return problem end
  return c:done('create', { a.parent, ino }, { a.name }, ino, c:attributes(ino), c:attributes(a.parent),
    c:was(a.parent))
end)

-- mknod {parent, name, mode, rdev, uid, gid} -> ino, attributes, the parent's, the parent's ctime before; mode has the type
local NODES = { [0x1000] = true, [0x2000] = true, [0x6000] = true, [S_IFREG] = true, [0xC000] = true }
mutation('mknod', {}, { parent = 'ino', name = 'bytes', mode = 'mode', rdev = 'count?', uid = 'id', gid = 'id' },
  function(c, a)
    if not NODES[bit.band(a.mode, S_IFMT)] then return EINVAL end
    local ino, problem = make(c, a, a.mode)
    if not ino then return problem end
    return c:done('mknod', { a.parent, ino }, { a.name }, ino, c:attributes(ino), c:attributes(a.parent),
    c:was(a.parent))
  end)

-- mkdir {parent, name, mode, uid, gid} -> ino, attributes, the parent's, the parent's ctime before
mutation('mkdir', {}, { parent = 'ino', name = 'bytes', mode = 'mode', uid = 'id', gid = 'id' }, function(c, a)
  local ino, problem, directory = make(c, a, S_IFDIR + bit.band(a.mode, 0xFFF))
  if not ino then return problem end
  directory[NLINK] = directory[NLINK] + 1
  return c:done('mkdir', { a.parent, ino }, { a.name }, ino, c:attributes(ino), c:attributes(a.parent),
    c:was(a.parent))
end)

-- symlink {parent, name, target, uid, gid} -> ino, attributes, the parent's, the parent's ctime before
mutation('symlink', {}, { parent = 'ino', name = 'bytes', target = 'bytes', uid = 'id', gid = 'id' }, function(c, a)
  if #a.target > LIMIT.path then return ENAMETOOLONG end
  if a.target == '' then return ENOENT end
  local ino, inode = make(c, a, S_IFLNK + 0x1FF)
  if not ino then return inode end
  inode[TARGET], inode[SIZE] = a.target, #a.target
  return c:done('symlink', { a.parent, ino }, { a.name }, ino, c:attributes(ino), c:attributes(a.parent),
    c:was(a.parent))
end)

-- link {ino, parent, name} -> attributes, the parent's, the parent's ctime before
mutation('link', {}, { ino = 'ino', parent = 'ino', name = 'bytes' }, function(c, a)
  local inode = c:inode(a.ino)
  if not inode or inode[NLINK] == 0 then return ENOENT end
  if is(inode[MODE], S_IFDIR) then return EPERM end
  local directory, problem = room_for(c, a.parent, a.name)
  if not directory then return problem end
  if inode[NLINK] >= LIMIT.links then return EMLINK end
  inode[NLINK] = inode[NLINK] + 1
  c:touch(inode)
  c:keep(a.ino)
  c:put_entry(a.parent, a.name, a.ino, c:cookie())
  c:touch_directory(a.parent)
  return c:done('link', { a.parent, a.ino }, { a.name }, c:attributes(a.ino), c:attributes(a.parent),
    c:was(a.parent))
end)
