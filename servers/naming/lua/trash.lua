-- Removed files are kept for a while: as inodes without a name, whose due time is far away. See keyspace.py.
-- Only content that somebody removed by its name and that nobody had open: what is overwritten or was a temporary
-- file of a running program is not kept. Of a removed directory its name is kept, for the paths of what was in it.
-- The record of one is {parent, name, when, stored bytes, is it a directory}.

-- trash {after_ms, count} -> ino, due ms, record, ...: by due time, from there on
read('trash', { after_ms = 'count', count = 'count' }, function(c, a)
  local reply = { 0 }
  local rows = call('ZRANGEBYSCORE', c.K .. ':trash', text(a.after_ms), '+inf', 'WITHSCORES', 'LIMIT', 0, text(a.count))
  for i = 1, #rows, 2 do
    local n = #reply
    reply[n + 1], reply[n + 2], reply[n + 3] = tonumber(rows[i]), tonumber(rows[i + 1]),
      call('HGET', c.K .. ':trash_from', rows[i])
  end
  return reply
end)

-- The trash as a directory: `.trash` in the root, found by its name and never listed, unless a file has that name.
-- Nothing of it is stored. Only reads know it: to any change, it is not there. An entry is named after the removed file
-- and its inode; its cookie is when it is due, and which it is of those due then.
local TRASH, COOKIES = 2 ^ 53, 4096

local function name_in_trash(name, ino) return name:sub(1, LIMIT.name - #ino - 1) .. '.' .. ino end

function Call:is_trash(ino) return ino == TRASH end

function Call:trash_directory()
  return pack({
    S_IFDIR + 0x140, 0, 0, 2, 0, self.s, 0, self.s, 0, self.s, 0, 0, self:setting('chunk_size'), 0, self.s, 0, 0, '',
    self:setting('replicas'), 1,
  })
end

-- What is hidden behind the name: its number and attributes; or nil.
function Call:hidden(parent, name)
  if parent == 1 and name == '.trash' then
    if (self:setting('trash_ms') or 0) > 0 then return TRASH, self:trash_directory() end
    return nil
  end
  local ino = parent == TRASH and name:match('%.(%d+)$')
  local blob = ino and call('HGET', self.K .. ':trash_from', ino)
  local record = blob and unpack_value(blob)
  if not record or record[5] == 1 or name_in_trash(record[2], ino) ~= name then return nil end
  return tonumber(ino), call('GET', self.K .. ':i:' .. ino)
end

-- A page of it, as `readdir` gives them; directories are left out.
function Call:list_trash(after, count)
  local reply, due, skip, step = { 0, 0, '' }, floor(after / COOKIES), after % COOKIES, count + COOKIES
  local last, ordinal = due, 0
  while true do
    local rows = call('ZRANGEBYSCORE', self.K .. ':trash', text(due), '+inf', 'WITHSCORES', 'LIMIT', 0, text(step))
    for i = 1, #rows, 2 do
      local score = tonumber(rows[i + 1])
      ordinal = score == last and ordinal + 1 or 1
      last = score
      local record = (score > due or ordinal > skip) and unpack_value(call('HGET', self.K .. ':trash_from', rows[i]))
      if record and record[5] == 0 then
        local n = #reply
        reply[n + 1], reply[n + 2] = name_in_trash(record[2], rows[i]), score * COOKIES + ordinal
        reply[n + 3], reply[n + 4] = tonumber(rows[i]), call('GET', self.K .. ':i:' .. rows[i])
        if n + 4 == 3 + 4 * count then return reply end
      end
    end
    if #rows < 2 * step then break end
    due, skip, ordinal = last, ordinal, 0
  end
  reply[2] = 1
  return reply
end

-- restore {ino, parent, name} -> attributes, the parent's; the removed file has this name now
mutation('restore', {}, { ino = 'ino', parent = 'ino', name = 'bytes' }, function(c, a)
  local inode = c:inode(a.ino)
  if not inode or inode[NLINK] ~= 0 or is(inode[MODE], S_IFDIR) or not c:is_in_trash(a.ino) then return ENOENT end
  local directory, problem = room_for(c, a.parent, a.name)
  if not directory then return problem end
  c:out_of_trash(text(a.ino))
  call('ZREM', c.K .. ':orphans', text(a.ino))
  inode[NLINK] = 1
  c:touch(inode)
  c:keep(a.ino)
  c:put_entry(a.parent, a.name, a.ino, c:cookie())
  c:touch_directory(a.parent)
  c:add('files', 1)
  return c:done('restore', { a.parent, a.ino }, { a.name }, c:attributes(a.ino), c:attributes(a.parent))
end)

-- empty_trash {count, bytes} -> files, bytes: of the oldest so many are let go of now, till so many bytes are reached
internal('empty_trash', {}, { count = 'count', bytes = 'count' }, function(c, a)
  local files, bytes = 0, 0
  if c.safe then return { 0, 0, 0 } end
  for _, ino in ipairs(call('ZRANGE', c.K .. ':trash', 0, min(a.count, LIMIT.extents) - 1)) do
    if bytes >= a.bytes then break end
    files, bytes = files + 1, bytes + c:out_of_trash(ino)
    if call('ZSCORE', c.K .. ':orphans', ino) then c:orphan(tonumber(ino), 0) end
  end
  return { 0, files, bytes }
end)
