-- unlink {parent, name, ino?} -> ino, attributes of what was unlinked, the parent's,
-- the parent's ctime before; with `ino`, only that one
mutation('unlink', { frees = true }, { parent = 'ino', name = 'bytes', ino = 'ino?' }, function(c, a)
  local directory, problem = c:directory(a.parent)
  if not directory then return problem end
  local ino = c:entry(a.parent, a.name)
  if not ino then return #a.name > LIMIT.name and ENAMETOOLONG or ENOENT end
  if a.ino and a.ino ~= ino then return ENOENT end
  if is(c:inode(ino)[MODE], S_IFDIR) then return EISDIR end
  c:drop_entry(a.parent, a.name)
  c:unlinked(ino)
  c:discard(ino, a.parent, a.name)
  c:touch_directory(a.parent)
  return c:done('unlink', { a.parent, ino }, { a.name }, ino, c:attributes(ino), c:attributes(a.parent),
    c:was(a.parent))
end)

-- rmdir {parent, name} -> ino, the parent's attributes, its ctime before
mutation('rmdir', { frees = true }, { parent = 'ino', name = 'bytes' }, function(c, a)
  local directory, problem = c:directory(a.parent)
  if not directory then return problem end
  local ino = c:entry(a.parent, a.name)
  if not ino then return #a.name > LIMIT.name and ENAMETOOLONG or ENOENT end
  if not is(c:inode(ino)[MODE], S_IFDIR) then return ENOTDIR end
  if call('HLEN', c:key('d', ino)) > 0 then return ENOTEMPTY end
  c:drop_entry(a.parent, a.name)
  directory[NLINK] = directory[NLINK] - 1
  c:unlinked(ino)
  c:discard(ino, a.parent, a.name)
  c:touch_directory(a.parent)
  return c:done('rmdir', { a.parent, ino }, { a.name }, ino, c:attributes(a.parent), c:was(a.parent))
end)
