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

-- A new inode that belongs to the caller, or to the directory's group where that is setgid.
local function new_inode(c, directory, a)
  local gid, mode = a.gid, a.mode
  if bit.band(directory[MODE], S_ISGID) ~= 0 then
    gid = directory[GID]
    if is(mode, S_IFDIR) then mode = bit.bor(mode, S_ISGID) end
  end
  local ino = call('HINCRBY', c.K .. ':volume', 'next_ino', 1)
  c:add_inode(ino, {
    mode, a.uid, gid, is(mode, S_IFDIR) and 2 or 1, 0, c.s, c.ns, c.s, c.ns, c.s, c.ns,
    a.rdev or 0, directory[CHUNK], 0, c:next_seq(), 0, 0, '', directory[REPLICAS], 0,
  })
  return ino
end

local function make(c, a, verb, finish)
  local directory, problem = room_for(c, a.parent, a.name)
  if not directory then return problem end
  local ino = new_inode(c, directory, a)
  c:put_entry(a.parent, a.name, ino, c:cookie())
  c:touch_directory(a.parent)
  call('HINCRBY', c.K .. ':volume', is(a.mode, S_IFDIR) and 'directories' or 'files', 1)
  if finish then finish(ino, c.inodes[ino], directory) end
  return c:done(verb, { a.parent, ino }, { a.name }, ino, c:attributes(ino))
end

-- create {parent, name, mode, uid, gid, exclusive} -> ino, attributes, made
-- Opens it for the session too. Without `exclusive` a file that is there is opened as it is.
mutation('create', {}, function(c, a)
  local there = not a.exclusive and c:directory(a.parent) and c:entry(a.parent, a.name)
  if there then
    local inode = c:inode(there)
    if is(inode[MODE], S_IFDIR) then return EISDIR end
    c:open(there)
    return c:done('open', { there }, {}, there, c:attributes(there), 0)
  end
  a.mode = S_IFREG + bit.band(a.mode, 0xFFF)
  local directory, problem = room_for(c, a.parent, a.name)
  if not directory then return problem end
  local ino = new_inode(c, directory, a)
  c:put_entry(a.parent, a.name, ino, c:cookie())
  c:touch_directory(a.parent)
  call('HINCRBY', c.K .. ':volume', 'files', 1)
  c:open(ino)
  return c:done('create', { a.parent, ino }, { a.name }, ino, c:attributes(ino), 1)
end)

-- mknod {parent, name, mode, rdev, uid, gid} -> ino, attributes; mode has the type
mutation('mknod', {}, function(c, a)
  if is(a.mode, S_IFDIR) or is(a.mode, S_IFLNK) then return EINVAL end
  return make(c, a, 'mknod')
end)

-- mkdir {parent, name, mode, uid, gid} -> ino, attributes
mutation('mkdir', {}, function(c, a)
  a.mode = S_IFDIR + bit.band(a.mode, 0xFFF)
  return make(c, a, 'mkdir', function(_, inode, directory)
    inode[PARENT] = a.parent
    directory[NLINK] = directory[NLINK] + 1
  end)
end)

-- symlink {parent, name, target, uid, gid} -> ino, attributes
mutation('symlink', {}, function(c, a)
  if #a.target > LIMIT.path then return ENAMETOOLONG end
  if a.target == '' then return ENOENT end
  a.mode = S_IFLNK + 0x1FF
  return make(c, a, 'symlink', function(_, inode)
    inode[TARGET], inode[SIZE] = a.target, #a.target
  end)
end)

-- link {ino, parent, name} -> attributes
mutation('link', {}, function(c, a)
  local inode = c:inode(a.ino)
  if not inode or inode[NLINK] == 0 then return ENOENT end
  if is(inode[MODE], S_IFDIR) then return EPERM end
  local directory, problem = room_for(c, a.parent, a.name)
  if not directory then return problem end
  if inode[NLINK] >= LIMIT.links then return EMLINK end
  inode[NLINK] = inode[NLINK] + 1
  c:touch(inode, CTIME)
  c:keep(a.ino)
  c:put_entry(a.parent, a.name, a.ino, c:cookie())
  c:touch_directory(a.parent)
  return c:done('link', { a.parent, a.ino }, { a.name }, c:attributes(a.ino))
end)
