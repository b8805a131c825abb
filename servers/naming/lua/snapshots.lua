-- Snapshots of the metadata on the storage nodes: which there are; and numbers after one was restored.

-- snapshots {} -> now in ms, the latest change, copies wanted, the latest change that the nodes have, change, taken ms,
-- ...: the oldest first
read('snapshots', {}, function(c)
  local reply = { 0, c.ms, c:setting('seq'), c:setting('replicas'), c:setting('stored_seq') or 0 }
  for _, part in ipairs(call('ZRANGE', c.K .. ':snapshots', 0, -1, 'WITHSCORES')) do
    reply[#reply + 1] = tonumber(part)
  end
  return reply
end)

-- snapshot {} -> a change number for itself: one is being taken
internal('snapshot', {}, {}, function(c)
  call('ZADD', c.K .. ':snapshots', text(c.ms), text(c:next_seq()))
  return { 0, c.seq }
end)

-- mark {mark} -> ; replicas see it behind all that was changed before
internal('mark', {}, { mark = 'bytes' }, function(c, a)
  call('HSET', c.K .. ':volume', 'mark', a.mark)
  return { 0 }
end)

-- stored {seq} -> ; the nodes have all changes up to this one
internal('stored', {}, { seq = 'count' }, function(c, a)
  call('HSET', c.K .. ':volume', 'stored_seq', text(a.seq))
  return { 0 }
end)

-- snapshot_over {seq, keep} -> ; forgets that one, and with `keep` all but so many
internal('snapshot_over', {}, { seq = 'count', keep = 'count' }, function(c, a)
  call('ZREM', c.K .. ':snapshots', text(a.seq))
  if a.keep > 0 then call('ZREMRANGEBYRANK', c.K .. ':snapshots', 0, -1 - a.keep) end
  return { 0 }
end)

-- recovered {session, why} -> ; this metadata is older than what the nodes know: numbers go on beyond all that were
-- given out since (by the clock: there are never a thousand changes in each millisecond), no session lives, each node
-- is asked for all that it should have, and none is told to delete anything before an operator says so
local BEYOND = 1000000
internal('recovered', {}, { session = 'count', why = 'bytes' }, function(c, a)
  local volume = c.K .. ':volume'
  for _, counter in ipairs({ 'seq', 'next_ino' }) do
    c:add(counter, max(BEYOND, c.ms - c.counters[counter]))
  end
  call('HSET', volume, 'next_session', text(max(c:setting('next_session'), a.session) + BEYOND))
  call('HSET', volume, 'next_order', text(max(c:setting('next_order') or 0, c.ms)))
  call('HSET', volume, 'held', a.why, 'alive_ms', text(c.ms))
  call('HDEL', volume, 'safe')
  call('DEL', c.K .. ':forgotten') -- whoever is left may have what is missing
  for _, number in ipairs(call('HKEYS', c.K .. ':nodes')) do call('HSET', c.K .. ':doubted', number, text(c.ms)) end
  for _, session in ipairs(call('ZRANGE', c.K .. ':sessions', 0, -1)) do
    call('ZADD', c.K .. ':sessions', 0, session)
  end
  return { 0 }
end)
