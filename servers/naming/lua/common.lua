-- What every function of the library shares. Loaded first; see servers/naming/namespace.py.
--
-- Values in Redis are msgpack. An inode is the array below; a chunk map is a hash from chunk
-- index to a flat array of segments, sorted by offset and without overlap:
--     {offset, extent id, offset in extent, length, nodes, offset, ...}
-- The map of all keys is in servers/naming/keyspace.py.
--
-- Every function gets one key, the volume's prefix, and four arguments: session, n, its packed
-- arguments and the uuid of the volume that the caller means. Where another volume is, or none,
-- reads answer EIO and mutations EROFS: metadata that was lost is not metadata that says no.
--
-- A function checks everything first, its arguments' types too, and then writes, with nothing in
-- between that can fail: Redis does not roll back.

-- While a library loads, none of Lua's own libraries is there yet: hence the wrappers.
local function call(...) return redis.call(...) end
local function pack(value) return cmsgpack.pack(value) end
local function unpack_value(blob) return cmsgpack.unpack(blob) end
local function floor(x) return math.floor(x) end
local function max(...) return math.max(...) end
local function min(...) return math.min(...) end
local function text(number) return string.format('%d', number) end

-- The fields of an inode.
local MODE, UID, GID, NLINK, SIZE = 1, 2, 3, 4, 5
local ATIME, MTIME, CTIME = 6, 8, 10 -- seconds; nanoseconds in the field after
local RDEV, CHUNK, STORED, VERSION, XATTRS, UNSYNCED, TARGET, REPLICAS, PARENT = 12, 13, 14, 15, 16, 17, 18, 19, 20

local EPERM, ENOENT, EIO, E2BIG, EAGAIN, EBUSY, EEXIST, EXDEV = 1, 2, 5, 7, 11, 16, 17, 18
local ENOTDIR, EISDIR, EINVAL, EFBIG, ENOSPC, EROFS, EMLINK, ERANGE = 20, 21, 22, 27, 28, 30, 31, 34
local ENAMETOOLONG, ENOTEMPTY, ENODATA, ESTALE = 36, 39, 61, 116
local SESSION_LOST, TOO_OLD = 1000, 1001 -- not errnos; servers/client/naming.py knows them
local NOT_LEADING = 1002 -- neither; servers/naming/redis_store.py knows it

local LIMIT = {
  name = @NAME_BYTES_MAX@, path = @PATH_BYTES_MAX@, links = @LINKS_MAX@, depth = @DEPTH_MAX@, file = @FILE_BYTES_MAX@,
  xattr_name = @XATTR_NAME_BYTES_MAX@, xattr_value = @XATTR_VALUE_BYTES_MAX@, xattr_total = @XATTR_TOTAL_BYTES_MAX@,
  chunks = @CHUNKS_PER_CALL_MAX@, names = @NAMES_PER_CALL_MAX@, window = @OP_WINDOW@, extents = @EXTENTS_PER_CALL_MAX@,
  chunk_low = @CHUNK_BYTES_MIN@, chunk_high = @CHUNK_BYTES_MAX@, segments = @SEGMENTS_PER_COMMIT_MAX@,
  appended = @APPENDED_CHUNKS_MAX@, replicas = @REPLICAS_MAX@, listed = @LISTED_CHUNKS_MAX@, let_go = @LET_GO_AT_ONCE_MAX@,
  trash = @TRASH_FILES_MAX@, long = @LONG_SEGMENTS_MIN@, very_long = @VERY_LONG_SEGMENTS_MIN@,
}
local LOG_ENTRIES = 100000 -- how much of the change log Redis keeps

local S_IFMT, S_IFDIR, S_IFREG, S_IFLNK = 0xF000, 0x4000, 0x8000, 0xA000
local S_ISUID, S_ISGID, S_IXGRP = 0x800, 0x400, 0x8
local function is(mode, kind) return bit.band(mode, S_IFMT) == kind end

-- The kinds of arguments. Numbers are doubles here, exact to 2^53.
local EXACT = 2 ^ 53
local function whole(value, low, high)
  return type(value) == 'number' and value >= low and value <= high and value == floor(value)
end
local function optional(kind)
  return function(v) return v == nil or kind(v) end
end
local KIND = {
  ino = function(v) return whole(v, 1, EXACT) end,
  count = function(v) return whole(v, 0, EXACT) end,
  size = function(v) return whole(v, -EXACT, EXACT) end,
  id = function(v) return whole(v, 0, 0xFFFFFFFF) end,
  mode = function(v) return whole(v, 0, 0xFFFF) end,
  bytes = function(v) return type(v) == 'string' end,
  flag = function(v) return v == nil or type(v) == 'boolean' or v == 0 or v == 1 end,
  list = function(v) return type(v) == 'table' end,
  time = function(v)
    return v == true or (type(v) == 'table' and whole(v[1], -EXACT, EXACT) and whole(v[2], 0, 999999999))
  end,
}
KIND['ino?'], KIND['count?'], KIND['size?'] = optional(KIND.ino), optional(KIND.count), optional(KIND.size)
KIND['id?'], KIND['mode?'], KIND['bytes?'] = optional(KIND.id), optional(KIND.mode), optional(KIND.bytes)
KIND['list?'], KIND['time?'] = optional(KIND.list), optional(KIND.time)

-- Whether `a` has what `wants` says: name -> kind, with a question mark for what may be missing.
-- A flag is true or false afterwards, whichever way it was written, because 0 is true in Lua.
local function fits(a, wants)
  if type(a) ~= 'table' then return false end
  for name, kind in pairs(wants) do
    local value = a[name]
    if not KIND[kind](value) then return false end
    if kind == 'flag' then a[name] = value == true or value == 1 end
  end
  return true
end

local function texts(list)
  for _, value in ipairs(list) do
    if type(value) ~= 'string' then return false end
  end
  return true
end

local function numbers(list)
  for _, value in ipairs(list) do
    if not whole(value, 1, EXACT) then return false end
  end
  return true
end

-- One call's view of the volume: loads each inode once and writes back those that were changed.
local Call = {}
Call.__index = Call

local function new_call(keys, argv, wants)
  local time = call('TIME')
  local v = call('HMGET', keys[1] .. ':volume', 'uuid', 'safe', 'seq', 'next_ino', 'files', 'directories', 'extents',
    'bytes')
  local _, a = pcall(unpack_value, argv[3])
  local self = setmetatable({
    K = keys[1], session = argv[1], n = tonumber(argv[2]), a = fits(a, wants) and a,
    s = tonumber(time[1]), ns = tonumber(time[2]) * 1000, inodes = {}, changed = {}, packed = {},
    counters = { seq = v[3], next_ino = v[4], files = v[5], directories = v[6], extents = v[7], bytes = v[8] },
    lost = v[1] ~= argv[4], safe = v[2],
  }, Call)
  self.ms = self.s * 1000 + floor(self.ns / 1000000)
  return self
end

function Call:key(kind, id) return self.K .. ':' .. kind .. ':' .. text(id) end

function Call:setting(name) return tonumber(call('HGET', self.K .. ':volume', name)) end

-- Whether the session's lease runs. While Redis or all naming servers were away nobody could renew one:
-- until the first background job is back, what ended since the last one has not ended.
function Call:is_alive(session)
  local lease = tonumber(call('ZSCORE', self.K .. ':sessions', session) or 0)
  if lease >= self.ms then return true end
  local away, last = self:away_ms()
  return away > 0 and lease >= last
end

-- For how long there was no background job, if that is longer than it should be, else 0; and when the last was.
function Call:away_ms()
  local v = call('HMGET', self.K .. ':volume', 'alive_ms', 'outage_ms')
  local last = tonumber(v[1] or self.ms)
  local away = self.ms - last
  return away > tonumber(v[2]) and away or 0, last
end

-- Counts up or down one of the volume's numbers; written at the end, all at once.
function Call:add(counter, change)
  self.counted = self.counted or {}
  self.counted[counter] = true
  self.counters[counter] = self.counters[counter] + change
  return self.counters[counter]
end

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

-- Times that we give only go forward, whatever the clocks do: two changes never have one time.
function Call:touch(inode)
  if self.s > inode[CTIME] or (self.s == inode[CTIME] and self.ns > inode[CTIME + 1]) then
    inode[CTIME], inode[CTIME + 1] = self.s, self.ns
  elseif inode[CTIME + 1] < 999999999 then
    inode[CTIME + 1] = inode[CTIME + 1] + 1
  else
    inode[CTIME], inode[CTIME + 1] = inode[CTIME] + 1, 0
  end
end

-- The content changed now, also where somebody had set its time into the future.
function Call:modify(inode)
  self:touch(inode)
  inode[MTIME], inode[MTIME + 1] = inode[CTIME], inode[CTIME + 1]
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
  call('ZADD', self:key('n', directory), text(cookie), name)
end

function Call:drop_entry(directory, name)
  call('HDEL', self:key('d', directory), name)
  call('ZREM', self:key('n', directory), name)
end

function Call:touch_directory(ino)
  local inode = self:inode(ino)
  self.were = self.were or {}
  self.were[ino] = self.were[ino] or { inode[CTIME], inode[CTIME + 1] }
  self:modify(inode)
  self:keep(ino)
end

-- The ctime, {s, ns}, that the directory had before this call: whoever knew all of its names then knows them now.
function Call:was(ino)
  local inode = self:inode(ino)
  return self.were and self.were[ino] or { inode[CTIME], inode[CTIME + 1] }
end

-- The next change number. Taken once per mutation; also the cookie of the entry that it makes,
-- so cookies grow with time within every directory, and 1 and 2 stay free for . and ..
function Call:next_seq()
  if not self.seq then self.seq = self:add('seq', 1) end
  return self.seq
end
function Call:cookie() return self:next_seq() + 2 end

-- The inode has no name: it lives until nobody has it open, and at least so long.
function Call:orphan(ino, ms)
  call('ZADD', self.K .. ':orphans', text(self.ms + ms), text(ino))
end

-- An entry of this inode was taken out of a directory. The grace of one without a name is longer
-- than an open on its way here can take.
function Call:unlinked(ino)
  local inode = self:inode(ino)
  local is_directory = is(inode[MODE], S_IFDIR)
  inode[NLINK] = is_directory and 0 or inode[NLINK] - 1
  self:touch(inode)
  self:keep(ino)
  if inode[NLINK] == 0 then
    self:orphan(ino, self:setting('orphan_grace_ms'))
    self:add(is_directory and 'directories' or 'files', -1)
  end
end

-- What was just unlinked goes to the trash, if there is one: see trash.lua. The oldest of too many goes for good.
function Call:discard(ino, parent, name)
  local inode = self.inodes[ino]
  local is_directory = is(inode[MODE], S_IFDIR)
  if inode[NLINK] > 0 or not (is_directory or is(inode[MODE], S_IFREG) or is(inode[MODE], S_IFLNK)) then return end
  local keep_ms = self:setting('trash_ms') or 0
  if keep_ms == 0 or call('EXISTS', self:key('o', ino)) == 1 then return end
  local trash = self.K .. ':trash'
  local count = call('ZCARD', trash)
  -- Half of the places are for what holds something: locks that come and go do not drive it out.
  if not is_directory and inode[STORED] == 0 and count >= LIMIT.trash / 2 then return end
  if count >= LIMIT.trash then
    local oldest = call('ZRANGE', trash, 0, 0)[1]
    self:out_of_trash(oldest)
    if call('ZSCORE', self.K .. ':orphans', oldest) then self:orphan(tonumber(oldest), 0) end
  end
  call('ZADD', trash, text(self.ms + keep_ms), text(ino))
  local stored = is_directory and 0 or inode[STORED]
  call('HSET', self.K .. ':trash_from', text(ino), pack({ parent, name, self.s, stored, is_directory and 1 or 0 }))
  if is_directory then return end
  call('HINCRBY', self.K .. ':volume', 'trash_bytes', text(stored))
  self:orphan(ino, keep_ms)
end

function Call:is_in_trash(ino) return call('ZSCORE', self.K .. ':trash', text(ino)) end

-- Returns how many bytes were kept for it.
function Call:out_of_trash(ino)
  local blob = call('HGET', self.K .. ':trash_from', ino)
  if not blob then return 0 end
  call('ZREM', self.K .. ':trash', ino)
  call('HDEL', self.K .. ':trash_from', ino)
  local stored = unpack_value(blob)[4]
  if stored > 0 then call('HINCRBY', self.K .. ':volume', 'trash_bytes', text(-stored)) end
  return stored
end

-- Writes the inodes and the counters that were changed. The last that a call does to them.
function Call:save()
  local inodes, counters = {}, {}
  for ino in pairs(self.changed) do
    inodes[#inodes + 1] = self:key('i', ino)
    inodes[#inodes + 1] = self.packed[ino] or pack(self.inodes[ino])
  end
  if #inodes > 0 then call('MSET', unpack(inodes)) end
  for counter in pairs(self.counted or {}) do
    counters[#counters + 1] = counter
    counters[#counters + 1] = text(self.counters[counter])
  end
  if #counters > 0 then call('HSET', self.K .. ':volume', unpack(counters)) end
end

-- As they are at the end of the call: nothing is changed after it was asked.
function Call:attributes(ino)
  local inode = self.inodes[ino]
  if not inode then return call('GET', self:key('i', ino)) end
  self.packed[ino] = self.packed[ino] or pack(inode)
  return self.packed[ino]
end

-- The end of a mutation: the inodes, the log and the answer to give if it is sent again.
function Call:done(verb, inodes, names, ...)
  local seq = self:next_seq()
  self:save()
  call('XADD', self.K .. ':log', 'MAXLEN', '~', LOG_ENTRIES, text(seq) .. '-0',
    'e', pack({ tonumber(self.session), verb, inodes, names }))
  return self:remember(pack({ 0, ... }))
end

-- The results of a session's mutations: each has its slot, which it shares with those a window before and after.
function Call:remember(reply)
  call('HSET', self.K .. ':op:' .. self.session, text(self.n % LIMIT.window), struct.pack('>I8', self.n) .. reply)
  return reply
end

-- The number of the mutation that used our slot last, and its reply; or nil.
function Call:last_in_slot()
  local blob = call('HGET', self.K .. ':op:' .. self.session, text(self.n % LIMIT.window))
  if blob then return struct.unpack('>I8', blob), blob:sub(9) end
end

-- What the session gave up unanswered and is not done yet never will be: late, it would undo what was done in its place.
function Call:revoke(given_up)
  local key = self.K .. ':op:' .. self.session
  for _, n in ipairs(given_up) do
    local slot = text(n % LIMIT.window)
    local blob = call('HGET', key, slot)
    if not blob or struct.unpack('>I8', blob) < n then
      call('HSET', key, slot, struct.pack('>I8', n) .. pack({ EIO }))
    end
  end
end

-- A read: sees one moment, writes nothing.
local function read(verb, wants, body)
  redis.register_function {
    function_name = verb .. '_@VERSION@',
    flags = { 'no-writes' },
    callback = function(keys, argv)
      local c = new_call(keys, argv, wants)
      if c.lost then return pack({ EIO }) end
      if not c.a then return pack({ EINVAL }) end
      return pack(body(c, c.a))
    end,
  }
end

-- A mutation of a session. The body returns an errno, having written nothing, or a packed reply.
-- Beside its own arguments it may have `given_up`, numbers of earlier operations.
-- Options: `frees` works on a full Redis too; `harmless` in SAFE mode too; `again` makes the reply
-- of an operation that was remembered without one.
local function mutation(verb, options, wants, body)
  redis.register_function {
    function_name = verb .. '_@VERSION@',
    flags = options.frees and { 'allow-oom' } or {},
    callback = function(keys, argv)
      local c = new_call(keys, argv, wants)
      if c.lost then return pack({ EROFS }) end
      local last, reply = c:last_in_slot()
      if last == c.n then return reply ~= '' and reply or pack(options.again(c, c.a)) end
      if last and last > c.n then return pack({ TOO_OLD }) end
      if not c:is_alive(c.session) then return pack({ SESSION_LOST }) end
      if c.safe and not options.harmless then return pack({ EROFS }) end
      local given_up = c.a and c.a.given_up
      if type(given_up) == 'table' and #given_up <= LIMIT.window and numbers(given_up) then c:revoke(given_up) end
      local answer = c.a and body(c, c.a) or EINVAL
      if type(answer) == 'number' then return c:remember(pack({ answer })) end
      return answer
    end,
  }
end

-- Work of the naming server itself: no session, no op id; safe to do twice. In place of the op id background jobs
-- send the epoch in which they lead: refused once another has led.
-- Option: `first` may be called before the caller knows of a volume.
local function internal(verb, options, wants, body)
  redis.register_function {
    function_name = verb .. '_@VERSION@',
    flags = { 'allow-oom' },
    callback = function(keys, argv)
      local c = new_call(keys, argv, wants)
      if c.lost and not options.first then return pack({ EIO }) end
      if not c.a then return pack({ EINVAL }) end
      if c.n > 0 and c.n ~= c:setting('leader_epoch') then return pack({ NOT_LEADING }) end
      local reply = body(c, c.a, argv)
      c:save()
      return pack(reply)
    end,
  }
end
