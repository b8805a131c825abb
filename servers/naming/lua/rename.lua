-- rename {parent, name, new_parent, new_name, flags} -> ino, attributes, the ino that was at the new name, replaced or
-- exchanged (0 for none, `ino` for two names of one file, which both stay), the attributes of both parents, and the
-- ctimes that they had before
-- rename(2), renameat2(2): flags 1 NOREPLACE, 2 EXCHANGE.
local NOREPLACE, EXCHANGE = 1, 2

-- Whether `below` is `above` or lies in its subtree.
local function lies_in(c, below, above)
  local ino = below
  for _ = 1, LIMIT.depth do
    if ino == above then return true end
    if ino <= 1 then return false end
    local inode = c:inode(ino)
    if not inode then return false end
    ino = inode[PARENT]
  end
  return true -- refuse rather than risk a cycle
end

-- An entry for `ino` moved from one directory to another: a directory takes its .. along.
local function moved(c, ino, from, to)
  local inode = c:inode(ino)
  if is(inode[MODE], S_IFDIR) and from ~= to then
    inode[PARENT] = to
    c:inode(from)[NLINK] = c:inode(from)[NLINK] - 1
    c:inode(to)[NLINK] = c:inode(to)[NLINK] + 1
  end
  c:touch(inode)
  c:keep(ino)
end

local WANTS = { parent = 'ino', name = 'bytes', new_parent = 'ino', new_name = 'bytes', flags = 'count' }
mutation('rename', { frees = true }, WANTS, function(c, a)
  if a.flags > EXCHANGE then return EINVAL end
  local from, problem = c:directory(a.parent)
  if not from then return problem end
  local to
  to, problem = c:directory(a.new_parent)
  if not to then return problem end
  local ino, cookie = c:entry(a.parent, a.name)
  if not ino then return #a.name > LIMIT.name and ENAMETOOLONG or ENOENT end
  problem = name_errno(a.new_name)
  if problem then return problem end
  local target, target_cookie = c:entry(a.new_parent, a.new_name)
  if target and a.flags == NOREPLACE then return EEXIST end
  if not target and a.flags == EXCHANGE then return ENOENT end

  local inode = c:inode(ino)
  local is_directory = is(inode[MODE], S_IFDIR)
  local elsewhere = a.parent ~= a.new_parent -- what stays in its directory cannot come to lie in itself
  if is_directory and elsewhere and lies_in(c, a.new_parent, ino) then return EINVAL end
  local other = target and c:inode(target)
  local other_is_directory = other and is(other[MODE], S_IFDIR)
  if a.flags == EXCHANGE then
    if other_is_directory and elsewhere and lies_in(c, a.parent, target) then return EINVAL end
  elseif target and target ~= ino then
    if is_directory and not other_is_directory then return ENOTDIR end
    if other_is_directory and not is_directory then return EISDIR end
    if other_is_directory and call('HLEN', c:key('d', target)) > 0 then return ENOTEMPTY end
  end

  if target == ino then -- two names of one file: rename(2) does nothing
    return c:remember(pack({ 0, ino, c:attributes(ino), ino, c:attributes(a.parent), c:attributes(a.new_parent),
      c:was(a.parent), c:was(a.new_parent) }))
  end
  if a.flags == EXCHANGE then
    c:put_entry(a.parent, a.name, target, cookie)
    c:put_entry(a.new_parent, a.new_name, ino, target_cookie)
    moved(c, target, a.new_parent, a.parent)
    moved(c, ino, a.parent, a.new_parent)
  else
    c:drop_entry(a.parent, a.name)
    if target then
      if other_is_directory then to[NLINK] = to[NLINK] - 1 end
      c:unlinked(target)
    end
    c:put_entry(a.new_parent, a.new_name, ino, target_cookie or c:cookie())
    moved(c, ino, a.parent, a.new_parent)
  end
  c:touch_directory(a.parent)
  c:touch_directory(a.new_parent)
  local inodes = { a.parent, a.new_parent, ino, target }
  return c:done('rename', inodes, { a.name, a.new_name }, ino, c:attributes(ino), target or 0, c:attributes(a.parent),
    c:attributes(a.new_parent), c:was(a.parent), c:was(a.new_parent))
end)
