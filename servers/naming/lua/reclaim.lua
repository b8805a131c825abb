-- Space comes back: orphans are forgotten, their maps let go in steps, condemned extents deleted.
-- In SAFE mode nothing of this happens: whatever looks unneeded may be what was forgotten.

-- Forgets an inode without a name; its map is let go in steps.
local function forget_inode(c, ino)
  local inode = c:inode(tonumber(ino))
  if inode and inode[STORED] ~= 0 then c:add('bytes', -inode[STORED]) end
  call('DEL', c.K .. ':i:' .. ino, c.K .. ':a:' .. ino, c.K .. ':d:' .. ino, c.K .. ':n:' .. ino)
  call('ZREM', c.K .. ':orphans', ino)
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
      c:orphan(tonumber(ino), max(1, c:setting('orphan_grace_ms')))
    else
      forget_inode(c, ino)
      reaped = reaped + 1
    end
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
  if c.safe then return reply end
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

local GARBAGE, NEEDED, CONDEMNED, IN_FLIGHT = 0, 1, 2, 3

-- What is to be said of an extent that lies on a node.
local function verdict(c, extent)
  if #extent ~= 16 then return IN_FLIGHT end
  local key, field, session = c:owner_key(extent)
  if call('HEXISTS', key, field) == 1 then return NEEDED end
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

-- collect {extents} -> those of them that may be deleted, because from now on nobody can commit them
internal('collect', {}, { extents = 'list' }, function(c, a)
  local reply = { 0 }
  if c.safe then return reply end
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
