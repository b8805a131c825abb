-- What every function of the library shares. Loaded first; see servers/naming/namespace.py.
--
-- Values in Redis are msgpack. An inode is the array below; a chunk map is a hash from chunk
-- index to a flat array of segments, sorted by offset and without overlap:
--     {offset, extent id, offset in extent, length, nodes, offset, ...}
-- The map of all keys is in servers/naming/keyspace.py.
--
-- A function checks everything first and then writes, with nothing in between that can fail:
-- Redis does not roll back.

-- While a library loads, none of Lua's own libraries is there yet: hence the wrappers.
local function call(...) return redis.call(...) end
local function pack(value) return cmsgpack.pack(value) end
local function unpack_value(blob) return cmsgpack.unpack(blob) end
local function floor(x) return math.floor(x) end
local function max(...) return math.max(...) end
local function min(...) return math.min(...) end

-- The fields of an inode.
local MODE, UID, GID, NLINK, SIZE = 1, 2, 3, 4, 5
local ATIME, MTIME, CTIME = 6, 8, 10 -- seconds; nanoseconds in the field after
local RDEV, CHUNK, STORED, VERSION, XATTRS, UNSYNCED, TARGET, REPLICAS, PARENT = 12, 13, 14, 15, 16, 17, 18, 19, 20

local EPERM, ENOENT, E2BIG, EBUSY, EEXIST, ENOTDIR, EISDIR, EINVAL = 1, 2, 7, 16, 17, 20, 21, 22
local EFBIG, ENOSPC, EROFS, EMLINK, ERANGE, ENAMETOOLONG, ENOTEMPTY = 27, 28, 30, 31, 34, 36, 39
local ENODATA, ESTALE = 61, 116
local SESSION_LOST, TOO_OLD = 1000, 1001 -- not errnos; servers/client/naming.py knows them

local LIMIT = {
  name = @NAME_BYTES_MAX@, path = @PATH_BYTES_MAX@, links = @LINKS_MAX@, file = @FILE_BYTES_MAX@,
  xattr_name = @XATTR_NAME_BYTES_MAX@, xattr_value = @XATTR_VALUE_BYTES_MAX@, xattr_total = @XATTR_TOTAL_BYTES_MAX@,
  chunks = @CHUNKS_PER_CALL_MAX@, names = @NAMES_PER_CALL_MAX@, window = @OP_WINDOW@, extents = @EXTENTS_PER_CALL_MAX@,
}
local LOG_ENTRIES = 100000 -- how much of the change log Redis keeps

local S_IFMT, S_IFDIR, S_IFREG, S_IFLNK = 0xF000, 0x4000, 0x8000, 0xA000
local S_ISUID, S_ISGID, S_IXGRP = 0x800, 0x400, 0x8
local function is(mode, kind) return bit.band(mode, S_IFMT) == kind end

-- One call's view of the volume: loads each inode once and writes back those that were changed.
local Call = {}
Call.__index = Call

local function new_call(keys, argv)
  local time = call('TIME')
  local self = setmetatable({
    K = keys[1], session = argv[1], n = tonumber(argv[2]), a = unpack_value(argv[3]),
    s = tonumber(time[1]), ns = tonumber(time[2]) * 1000, inodes = {}, changed = {},
  }, Call)
  self.ms = self.s * 1000 + floor(self.ns / 1000000)
  return self
end

function Call:key(kind, id) return self.K .. ':' .. kind .. ':' .. string.format('%d', id) end

function Call:setting(name) return tonumber(call('HGET', self.K .. ':volume', name)) end

-- The inode's array, or nil. The same table every time, so that two roles of one inode agree.
function Call:inode(ino)
  local found = self.inodes[ino]
  if not found then
    local blob = call('GET', self:key('i', ino))
    if not blob then return nil end
    found = unpack_value(blob)
    self.inodes[ino] = found
  end
  return found
end

function Call:keep(ino) self.changed[ino] = true end

function Call:add_inode(ino, inode)
  self.inodes[ino] = inode
  self.changed[ino] = true
end

-- Times only go forward, whatever the clocks do.
function Call:touch(inode, field)
  if self.s > inode[field] or (self.s == inode[field] and self.ns > inode[field + 1]) then
    inode[field], inode[field + 1] = self.s, self.ns
  end
end

-- A live directory, or nil and the errno.
function Call:directory(ino)
  local inode = self:inode(ino)
  if not inode then return nil, ENOENT end
  if not is(inode[MODE], S_IFDIR) then return nil, ENOTDIR end
  if inode[NLINK] == 0 then return nil, ENOENT end
  return inode
end

local function name_errno(name)
  if #name > LIMIT.name then return ENAMETOOLONG end
  if name == '' or name == '.' or name == '..' or name:find('[/%z]') then return EINVAL end
  return nil
end

-- The inode number and the cookie of an entry, or nil.
function Call:entry(directory, name)
  local blob = call('HGET', self:key('d', directory), name)
  if not blob then return nil end
  local entry = unpack_value(blob)
  return entry[1], entry[2]
end

function Call:put_entry(directory, name, ino, cookie)
  call('HSET', self:key('d', directory), name, pack({ ino, cookie }))
  call('ZADD', self:key('n', directory), string.format('%d', cookie), name)
end

function Call:drop_entry(directory, name)
  call('HDEL', self:key('d', directory), name)
  call('ZREM', self:key('n', directory), name)
end

function Call:touch_directory(ino)
  local inode = self:inode(ino)
  self:touch(inode, MTIME)
  self:touch(inode, CTIME)
  self:keep(ino)
end

-- The next change number. Taken once per mutation; also the cookie of the entry that it makes,
-- so cookies grow with time within every directory, and 1 and 2 stay free for . and ..
function Call:next_seq()
  if not self.seq then self.seq = call('HINCRBY', self.K .. ':volume', 'seq', 1) end
  return self.seq
end
function Call:cookie() return self:next_seq() + 2 end

-- The last name is gone: the inode lives until nobody has it open, but at least for the grace,
-- which is longer than an open on its way here can take.
function Call:orphan(ino)
  call('ZADD', self.K .. ':orphans', self.ms + self:setting('orphan_grace_ms'), string.format('%d', ino))
end

-- An entry of this inode was taken out of a directory.
function Call:unlinked(ino)
  local inode = self:inode(ino)
  inode[NLINK] = is(inode[MODE], S_IFDIR) and 0 or inode[NLINK] - 1
  self:touch(inode, CTIME)
  self:keep(ino)
  if inode[NLINK] == 0 then
    self:orphan(ino)
    call('HINCRBY', self.K .. ':volume', is(inode[MODE], S_IFDIR) and 'directories' or 'files', -1)
  end
end

function Call:save_inodes()
  for ino in pairs(self.changed) do
    call('SET', self:key('i', ino), pack(self.inodes[ino]))
  end
  self.changed = {}
end

function Call:attributes(ino)
  if self.inodes[ino] then return pack(self.inodes[ino]) end
  return call('GET', self:key('i', ino))
end

-- The end of a mutation: the inodes, the log and the answer to give if it is sent again.
function Call:done(verb, inodes, names, ...)
  self:save_inodes()
  local seq = self:next_seq()
  call('XADD', self.K .. ':log', 'MAXLEN', '~', LOG_ENTRIES, string.format('%d-0', seq),
    'e', pack({ tonumber(self.session), verb, inodes, names }))
  return self:remember(pack({ 0, ... }))
end

function Call:remember(reply)
  if self.n > 0 then
    local ops = self.K .. ':op:' .. self.session
    local top = max(self.n, self.top or 0)
    call('HSET', ops, string.format('%d', self.n), reply, 'top', string.format('%d', top))
    call('HDEL', ops, string.format('%d', self.n - LIMIT.window))
  end
  return reply
end

-- A read: sees one moment, writes nothing.
local function read(verb, body)
  redis.register_function {
    function_name = verb .. '_@VERSION@',
    flags = { 'no-writes' },
    callback = function(keys, argv)
      local c = new_call(keys, argv)
      return pack(body(c, c.a))
    end,
  }
end

-- A mutation of a session. The body returns an errno, having written nothing, or what `done` returns.
local function mutation(verb, options, body)
  local flags = options.frees and { 'allow-oom' } or {}
  redis.register_function {
    function_name = verb .. '_@VERSION@',
    flags = flags,
    callback = function(keys, argv)
      local K, session, n = keys[1], argv[1], tonumber(argv[2])
      local known = call('HMGET', K .. ':op:' .. session, argv[2], 'top')
      if known[1] then return known[1] end
      local top = tonumber(known[2] or 0)
      if n <= top - LIMIT.window then return pack({ TOO_OLD }) end
      local c = new_call(keys, argv)
      c.top = top
      local lease = call('ZSCORE', K .. ':sessions', session)
      if not lease or tonumber(lease) < c.ms then return pack({ SESSION_LOST }) end
      if not options.harmless and call('HGET', K .. ':volume', 'safe') then return pack({ EROFS }) end
      local answer = body(c, c.a)
      if type(answer) == 'number' then return c:remember(pack({ answer })) end
      return answer
    end,
  }
end

-- Work of the naming server itself: no session, no op id; safe to do twice.
local function internal(verb, body)
  redis.register_function {
    function_name = verb .. '_@VERSION@',
    flags = { 'allow-oom' },
    callback = function(keys, argv)
      local c = new_call(keys, argv)
      local reply = body(c, c.a)
      c:save_inodes()
      return pack(reply)
    end,
  }
end
