-- Space comes back: orphans are forgotten, their maps let go in steps, condemned extents deleted.
-- In SAFE mode nothing of this happens: whatever looks unneeded may be what was forgotten. While an operator
-- holds deletions (`held`), nothing is deleted from the nodes.

function Call:may_delete() return not self.safe and not call('HGET', self.K .. ':volume', 'held') end

-- Forgets an inode without a name; its map is let go in steps.
local function forget_inode(c, ino)
  local inode = c:inode(tonumber(ino))
  if inode and inode[STORED] ~= 0 then c:add('bytes', -inode[STORED]) end
  call('DEL', c.K .. ':i:' .. ino, c.K .. ':a:' .. ino, c.K .. ':d:' .. ino, c.K .. ':n:' .. ino)
  call('ZREM', c.K .. ':orphans', ino)
  if inode and not is(inode[MODE], S_IFDIR) then c:out_of_trash(ino) end
  call('HDEL', c.K .. ':recount', ino)
  if call('EXISTS', c.K .. ':m:' .. ino) == 1 then call('ZADD', c.K .. ':purge', text(c.ms), 'm:' .. ino) end
end

-- Lets go of some chunks of a map that is in :purge. Returns how many chunks, and how many extents they showed.
-- What a map put aside shows may be shown by the file's map as well: it stays.
local function let_go(c, name)
  local key, chunks, extents = c.K .. ':' .. name, 0, 0
  local ino = name:match('^t:(%d+):')
  local rows = call('HRANDFIELD', key, LIMIT.chunks, 'WITHVALUES')
  for i = 1, #rows, 2 do
    local shown = ino and call('HGET', c.K .. ':m:' .. ino, rows[i])
    local stays = shown and extents_of(unpack_value(shown)) or nil
    extents = extents + c:unreference_all(unpack_value(rows[i + 1]), tonumber(rows[i]), stays)
    call('HDEL', key, rows[i])
    chunks = chunks + 1
    if extents >= LIMIT.extents then break end
  end
  if call('EXISTS', key) == 0 then call('ZREM', c.K .. ':purge', name) end
  return chunks, extents
end

-- reap {count} -> how many orphans were forgotten, how many chunks were let go
-- An orphan that somebody has open is looked at again after the grace.
internal('reap', {}, { count = 'count' }, function(c, a)
  if c.safe then return { 0, 0, 0 } end
  local orphans, reaped, freed, extents = c.K .. ':orphans', 0, 0, 0
  for _, ino in ipairs(call('ZRANGEBYSCORE', orphans, '-inf', text(c.ms), 'LIMIT', 0, text(a.count))) do
    if call('EXISTS', c.K .. ':o:' .. ino) == 1 then
      c:out_of_trash(ino)
      c:orphan(tonumber(ino), max(1, c:setting('orphan_grace_ms')))
    else
      forget_inode(c, ino)
      reaped = reaped + 1
    end
  end
  for _, ino in ipairs(call('ZRANGEBYSCORE', c.K .. ':trash', '-inf', text(c.ms), 'LIMIT', 0, text(a.count))) do
    if not call('ZSCORE', orphans, ino) then c:out_of_trash(ino) end -- a directory's name
  end
  for _, name in ipairs(call('ZRANGEBYSCORE', c.K .. ':purge', '-inf', text(c.ms), 'LIMIT', 0, LIMIT.chunks)) do
    local chunks, shown = let_go(c, name)
    freed, extents = freed + chunks, extents + shown
    if freed >= LIMIT.chunks or extents >= LIMIT.extents then break end
  end
  return { 0, reaped, freed }
end)

-- condemned {count} -> extent, nodes, extent, nodes, ...: whose grace is over
read('condemned', { count = 'count' }, function(c, a)
  local reply = { 0 }
  if not c:may_delete() then return reply end
  for _, extent in ipairs(call('ZRANGEBYSCORE', c.K .. ':condemned', '-inf', text(c.ms), 'LIMIT', 0, text(a.count))) do
    reply[#reply + 1] = extent
    reply[#reply + 1] = call('HGET', c.K .. ':condemned_nodes', extent)
  end
  return reply
end)

-- deleted {gone: extents, left: extent, nodes, ..., retry_ms} -> ; gone from every node, or left on these
internal('deleted', {}, { gone = 'list', left = 'list', retry_ms = 'count' }, function(c, a)
  if not texts(a.gone) or not texts(a.left) then return { EINVAL } end
  for _, extent in ipairs(a.gone) do
    call('ZREM', c.K .. ':condemned', extent)
    call('HDEL', c.K .. ':condemned_nodes', extent)
  end
  for i = 1, #a.left, 2 do
    if call('ZSCORE', c.K .. ':condemned', a.left[i]) then
      call('HSET', c.K .. ':condemned_nodes', a.left[i], a.left[i + 1])
      call('ZADD', c.K .. ':condemned', text(c.ms + a.retry_ms), a.left[i])
    end
  end
  return { 0 }
end)

local GARBAGE, NEEDED, CONDEMNED, IN_FLIGHT, SURPLUS = 0, 1, 2, 3, 4

-- What is to be said of an extent that lies on a node.
local function verdict(c, extent)
  if #extent ~= 16 then return IN_FLIGHT end
  local key, field, session = c:owner_key(extent)
  if call('HEXISTS', key, field) == 1 then return NEEDED end
  if session == '0' then -- a part of a snapshot, see servers/protocol/snapshots.py
    return call('ZSCORE', c.K .. ':snapshots', text(struct.unpack('>I6', extent, 9))) and NEEDED or GARBAGE
  end
  if call('ZSCORE', c.K .. ':condemned', extent) then return CONDEMNED end
  return call('ZSCORE', c.K .. ':sessions', session) and IN_FLIGHT or GARBAGE
end

-- known {extents} -> for each: 1 a file shows it, 2 condemned, 3 its session lives and may still
-- commit it, 0 nobody needs it
read('known', { extents = 'list' }, function(c, a)
  local reply = { 0 }
  if not texts(a.extents) then return { EINVAL } end
  for i, extent in ipairs(a.extents) do reply[i + 1] = verdict(c, extent) end
  return reply
end)

-- sight {extents} -> extent, since ms, ...: those of them that nobody needs, and since when that is known
-- Notes it of the new ones. What somebody needs after all, by another session's commit, is no garbage any more.
internal('sight', {}, { extents = 'list' }, function(c, a)
  local reply, garbage = { 0 }, c.K .. ':garbage'
  if not c:may_delete() then return reply end
  if #a.extents > LIMIT.extents or not texts(a.extents) then return { EINVAL } end
  for _, extent in ipairs(a.extents) do
    if verdict(c, extent) == GARBAGE then
      local since = call('ZSCORE', garbage, extent)
      if not since then call('ZADD', garbage, text(c.ms), extent) end
      reply[#reply + 1] = extent
      reply[#reply + 1] = tonumber(since or c.ms)
    end
  end
  return reply
end)

-- collect {extents} -> those of them that may be deleted, because from now on nobody can commit them
internal('collect', {}, { extents = 'list' }, function(c, a)
  local reply = { 0 }
  if not c:may_delete() then return reply end
  if not texts(a.extents) then return { EINVAL } end
  for _, extent in ipairs(a.extents) do
    if verdict(c, extent) == GARBAGE then
      local _, _, session = c:owner_key(extent)
      call('SADD', c.K .. ':collected', session)
      reply[#reply + 1] = extent
    end
  end
  return reply
end)

-- collected {gone: extents} -> ; no node has these any more
internal('collected', {}, { gone = 'list' }, function(c, a)
  if not texts(a.gone) then return { EINVAL } end
  for _, extent in ipairs(a.gone) do call('ZREM', c.K .. ':garbage', extent) end
  return { 0 }
end)

-- Whether this node is to delete its replica, because the files that show the extent look for it on others: when, ms.
local function surplus_ms(c, extent, node)
  local replica = struct.pack('>I2', node)
  local due = call('ZSCORE', c.K .. ':dropped', extent .. replica)
  if not due then return nil end
  local _, _, nodes = c:whereabouts(extent)
  for i = 1, nodes and #nodes or 0, 2 do
    if nodes:sub(i, i + 1) == replica then return nil end
  end
  return due
end

-- why {extents, node?} -> for each: verdict, its session, since when it is garbage or when its deletion is due, ms, or 0
-- With `node` as if it were of the replicas there: 4, some file shows the extent, but not on that node any more.
read('why', { extents = 'list', node = 'id?' }, function(c, a)
  local reply = { 0 }
  if #a.extents > LIMIT.extents or not texts(a.extents) then return { EINVAL } end
  for _, extent in ipairs(a.extents) do
    local found, _, session = verdict(c, extent), nil, 0
    if #extent == 16 then _, _, session = c:owner_key(extent) end
    local set = ({ [GARBAGE] = ':garbage', [CONDEMNED] = ':condemned' })[found]
    local ms = set and call('ZSCORE', c.K .. set, extent)
    if found == NEEDED and a.node then ms = surplus_ms(c, extent, a.node) end
    reply[#reply + 1] = found == NEEDED and ms and SURPLUS or found
    reply[#reply + 1] = tonumber(session)
    reply[#reply + 1] = tonumber(ms or 0)
  end
  return reply
end)

-- order {empty} -> the number of a delete order, the latest change, now in ms; EROFS when nothing may be deleted
-- One that names nothing only ends those before it: while deletions are held, too.
internal('order', {}, { empty = 'flag' }, function(c, a)
  if c.safe or not (a.empty or c:may_delete()) then return { EROFS } end
  return { 0, call('HINCRBY', c.K .. ':volume', 'next_order', 1), c:setting('seq'), c.ms }
end)

-- deletions {} -> now in ms, why they are held or '', why the brake stopped or '', until when it is off, ms
read('deletions', {}, function(c)
  local v = call('HMGET', c.K .. ':volume', 'held', 'brake', 'brake_off_ms')
  return { 0, c.ms, v[1] or '', v[2] or '', tonumber(v[3] or 0) }
end)

-- judged {node, ms} -> ; of the garbage that was known at that time, the node has no more than the brake allows
internal('judged', {}, { node = 'id', ms = 'count' }, function(c, a)
  call('HSET', c.K .. ':judged', text(a.node), text(a.ms))
  return { 0 }
end)

-- judged_ms {node} -> when that was last so, or 0
read('judged_ms', { node = 'id' }, function(c, a)
  return { 0, tonumber(call('HGET', c.K .. ':judged', text(a.node)) or 0) }
end)

-- hold {why} -> ; no node is told to delete anything, until it is called with an empty reason
internal('hold', {}, { why = 'bytes' }, function(c, a)
  if a.why == '' then call('HDEL', c.K .. ':volume', 'held') else call('HSET', c.K .. ':volume', 'held', a.why) end
  return { 0 }
end)

-- brake {why, off_ms?} -> ; notes why garbage is not collected, or that for so long it is without a limit
internal('brake', {}, { why = 'bytes', off_ms = 'count?' }, function(c, a)
  local volume = c.K .. ':volume'
  if a.off_ms then call('HSET', volume, 'brake_off_ms', text(c.ms + a.off_ms)) end
  if a.why == '' then call('HDEL', volume, 'brake') else call('HSET', volume, 'brake', a.why) end
  return { 0 }
end)
