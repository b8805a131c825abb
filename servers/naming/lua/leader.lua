-- Who runs the background jobs. Each time another does, a new epoch begins; what is done in an older one is refused
-- (see `internal` in common.lua), however long its leader slept.

-- lead {who, ms} -> the epoch in which the caller leads for so long; 0 while another does
internal('lead', {}, { who = 'bytes', ms = 'count' }, function(c, a)
  local leader, epoch = call('GET', c.K .. ':leader'), nil
  if leader then
    local who, since = unpack(unpack_value(leader))
    if who ~= a.who then return { 0, 0 } end
    epoch = since
  else
    epoch = call('HINCRBY', c.K .. ':volume', 'leader_epoch', 1)
  end
  call('SET', c.K .. ':leader', pack({ a.who, epoch }), 'PX', text(max(1, a.ms)))
  return { 0, epoch }
end)

-- resign {who} -> ; another may lead at once
internal('resign', {}, { who = 'bytes' }, function(c, a)
  local leader = call('GET', c.K .. ':leader')
  if leader and unpack_value(leader)[1] == a.who then call('DEL', c.K .. ':leader') end
  return { 0 }
end)
