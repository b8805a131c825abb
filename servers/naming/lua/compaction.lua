-- Long lists of segments made short: see servers/naming/background/compaction.py.
-- `set_chunk` notes long ones in :long, with the time; the very long ones with 0. What is put off has a time to come.

-- long {before_ms, count} -> ino, index, ...: chunks with long lists that did not grow since then, and very long ones
read('long', { before_ms = 'count', count = 'count' }, function(c, a)
  local reply = { 0 }
  if c.safe then return reply end
  for _, name in ipairs(call('ZRANGEBYSCORE', c.K .. ':long', '-inf', text(a.before_ms), 'LIMIT', 0, text(a.count))) do
    local ino, index = name:match('^(%d+):(%d+)$')
    reply[#reply + 1], reply[#reply + 2] = tonumber(ino), tonumber(index)
  end
  return reply
end)

-- long_chunk {ino, index} -> segments, their SHA-1, replicas wanted, mtime s, ns, chunk size; ENOENT where there is no such chunk
read('long_chunk', { ino = 'ino', index = 'count' }, function(c, a)
  local inode, blob = c:inode(a.ino), call('HGET', c:key('m', a.ino), text(a.index))
  if not inode or not blob then return { ENOENT } end
  return { 0, blob, redis.sha1hex(blob), inode[REPLICAS], inode[MTIME], inode[MTIME + 1], inode[CHUNK] }
end)

-- not_long {ino, index} -> ; nothing can be done for this chunk before it grows again
internal('not_long', {}, { ino = 'ino', index = 'count' }, function(c, a)
  call('ZREM', c.K .. ':long', string.format('%d:%d', a.ino, a.index))
  return { 0 }
end)

-- put_off {ino, index, ms} -> ; the chunk, if it is still noted, comes after the others, and not before so long
internal('put_off', {}, { ino = 'ino', index = 'count', ms = 'count' }, function(c, a)
  call('ZADD', c.K .. ':long', 'XX', text(c.ms + a.ms), string.format('%d:%d', a.ino, a.index))
  return { 0 }
end)

-- The runs without a hole that segments make up: start, end, start, end, ...
local function runs_of(segments)
  local runs = {}
  for i = 1, #segments, 5 do
    local n, start, stop = #runs, segments[i], segments[i] + segments[i + 3]
    if n > 0 and runs[n] == start then runs[n] = stop else runs[n + 1], runs[n + 2] = start, stop end
  end
  return runs
end

local function same(one, other)
  if #one ~= #other then return false end
  for i = 1, #one do
    if one[i] ~= other[i] then return false end
  end
  return true
end

-- The first `count` segments, and those that follow.
local function divided(segments, count)
  local first, rest = {}, {}
  for i = 1, #segments do
    if i <= 5 * count then first[i] = segments[i] else rest[i - 5 * count] = segments[i] end
  end
  return first, rest
end

-- compact {ino, index, seen, count, segments, made: extent, nodes, ...} -> 1 done, 0 the chunk is another by now
-- Replaces exactly the first `count` segments, whose SHA-1 is `seen`, by `segments`, which show the same bytes: nothing
-- else changes, no time either, but the data version, so that readers learn where the bytes are. What was appended
-- meanwhile follows. Where those are others by now, what was made for them is condemned.
local WANTS = { ino = 'ino', index = 'count', seen = 'bytes', count = 'count', segments = 'list', made = 'list' }
mutation('compact', {}, WANTS, function(c, a)
  local problem = check_unused(a.made)
  if problem then return problem end
  local inode, blob = c:inode(a.ino), call('HGET', c:key('m', a.ino), text(a.index))
  local old = blob and unpack_value(blob) or {}
  local replaced, rest = divided(old, a.count)
  if not inode or redis.sha1hex(pack(replaced)) ~= a.seen then
    condemn_unused(c, a.made)
    return c:done('compact', { a.ino }, {}, 0)
  end
  local chunks = { a.index, a.segments }
  problem = check_chunks(chunks, inode[CHUNK], inode[SIZE])
  if problem then return problem end
  if not same(runs_of(replaced), runs_of(a.segments)) then return EINVAL end
  local owners
  owners, problem = owners_of(c, a.ino, chunks)
  if not owners then return problem end
  local new = a.segments
  for i = 1, #rest do new[#new + 1] = rest[i] end
  reference(c, owners, inode[REPLICAS])
  c:set_chunk(a.ino, a.index, old, new)
  inode[VERSION] = c:next_seq()
  c:keep(a.ino)
  return c:done('compact', { a.ino }, {}, 1)
end)
