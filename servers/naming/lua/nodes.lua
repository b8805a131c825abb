-- Storage nodes and what the volume is made of.

-- heartbeat {uuid, address, rack, space, used, free, total} -> node number
internal('heartbeat', function(c, a)
  local numbers = c.K .. ':node_numbers'
  local number = call('HGET', numbers, a.uuid)
  if not number then
    number = call('HINCRBY', c.K .. ':volume', 'next_node', 1)
    call('HSET', numbers, a.uuid, number)
  end
  call('HSET', c.K .. ':nodes', number,
    pack({ a.uuid, a.address, a.rack, a.space, a.used, a.free, a.total, c.ms }))
  return { 0, tonumber(number) }
end)

-- nodes {} -> now in ms, number, record, number, record, ...
read('nodes', function(c)
  return { 0, c.ms, unpack(call('HGETALL', c.K .. ':nodes')) }
end)

-- statfs {} -> files, directories, bytes
read('statfs', function(c)
  local v = call('HMGET', c.K .. ':volume', 'files', 'directories', 'bytes')
  return { 0, tonumber(v[1]), tonumber(v[2]), tonumber(v[3]) }
end)

-- status {} -> a map of what the volume holds and what waits to be done
read('status', function(c)
  local v = call('HMGET', c.K .. ':volume', 'uuid', 'files', 'directories', 'bytes', 'extents', 'seq', 'safe',
    'chunk_size', 'replicas')
  return { 0, {
    uuid = v[1], files = tonumber(v[2]), directories = tonumber(v[3]), bytes = tonumber(v[4]), extents = tonumber(v[5]),
    seq = tonumber(v[6]), safe = v[7] and 1 or 0, chunk_size = tonumber(v[8]), replicas = tonumber(v[9]),
    sessions = call('ZCARD', c.K .. ':sessions'), orphans = call('ZCARD', c.K .. ':orphans'),
    purging = call('ZCARD', c.K .. ':purge'), deletions_pending = call('ZCARD', c.K .. ':condemned'),
    under_replicated = call('SCARD', c.K .. ':thin'), damaged = call('HLEN', c.K .. ':damaged'),
  } }
end)

-- damage {extent, node, why} -> 1 if it was not known
internal('damage', function(c, a)
  local field = a.extent .. struct.pack('>I2', a.node)
  return { 0, call('HSET', c.K .. ':damaged', field, pack({ c.s, a.why })) }
end)
