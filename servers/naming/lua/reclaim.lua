-- Space comes back: orphans are forgotten, their maps let go in steps, condemned extents deleted.

-- reap {count} -> how many orphans were forgotten, how many chunks were let go
-- An orphan that somebody has open is looked at again after the grace.
internal('reap', function(c, a)
  local orphans, purge, grace = c.K .. ':orphans', c.K .. ':purge', c:setting('orphan_grace_ms')
  local due, reaped, freed = call('ZRANGEBYSCORE', orphans, '-inf', c.ms, 'LIMIT', 0, a.count), 0, 0
  for _, ino in ipairs(due) do
    if call('SCARD', c.K .. ':o:' .. ino) > 0 then
      call('ZADD', orphans, c.ms + grace, ino)
    else
      local inode = c:inode(tonumber(ino))
      if inode and inode[STORED] ~= 0 then call('HINCRBY', c.K .. ':volume', 'bytes', -inode[STORED]) end
      call('DEL', c.K .. ':i:' .. ino, c.K .. ':a:' .. ino, c.K .. ':d:' .. ino, c.K .. ':n:' .. ino)
      call('ZREM', orphans, ino)
      if call('EXISTS', c.K .. ':m:' .. ino) == 1 then call('ZADD', purge, c.ms, 'm:' .. ino) end
      reaped = reaped + 1
    end
  end
  for _, name in ipairs(call('ZRANGEBYSCORE', purge, '-inf', c.ms, 'LIMIT', 0, 16)) do
    local key = c.K .. ':' .. name
    local rows = call('HSCAN', key, 0, 'COUNT', LIMIT.chunks)[2]
    for i = 1, #rows, 2 do
      c:unreference_all(unpack_value(rows[i + 1]), tonumber(rows[i]))
      call('HDEL', key, rows[i])
      freed = freed + 1
    end
    if call('EXISTS', key) == 0 then call('ZREM', purge, name) end
    if freed >= LIMIT.chunks then break end
  end
  return { 0, reaped, freed }
end)

-- condemned {count} -> extent, nodes, extent, nodes, ...: whose grace is over
read('condemned', function(c, a)
  local reply = { 0 }
  for _, extent in ipairs(call('ZRANGEBYSCORE', c.K .. ':condemned', '-inf', c.ms, 'LIMIT', 0, a.count)) do
    reply[#reply + 1] = extent
    reply[#reply + 1] = call('HGET', c.K .. ':condemned_nodes', extent)
  end
  return reply
end)

-- deleted {gone: extents, left: extent, nodes, ..., retry_ms} -> ; gone from every node, or left on these
internal('deleted', function(c, a)
  for _, extent in ipairs(a.gone) do
    call('ZREM', c.K .. ':condemned', extent)
    call('HDEL', c.K .. ':condemned_nodes', extent)
  end
  for i = 1, #a.left, 2 do
    if call('ZSCORE', c.K .. ':condemned', a.left[i]) then
      call('HSET', c.K .. ':condemned_nodes', a.left[i], a.left[i + 1])
      call('ZADD', c.K .. ':condemned', c.ms + a.retry_ms, a.left[i])
    end
  end
  return { 0 }
end)

-- known {extents} -> for each: 1 a file shows it, 2 condemned, 3 its session lives and may still
-- commit it, 0 nobody needs it
read('known', function(c, a)
  local reply = { 0 }
  for i, extent in ipairs(a.extents) do
    local key, field = c:owner_key(extent)
    local session = struct.unpack('>I8', extent)
    local lease = call('ZSCORE', c.K .. ':sessions', string.format('%d', session))
    if call('HEXISTS', key, field) == 1 then
      reply[i + 1] = 1
    elseif call('ZSCORE', c.K .. ':condemned', extent) then
      reply[i + 1] = 2
    else
      reply[i + 1] = lease and 3 or 0
    end
  end
  return reply
end)
