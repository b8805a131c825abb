-- The volume itself, and the storage nodes it lies on.

-- Read-only from now on, and nothing is deleted: what is here is older than what was acknowledged.
local function enter_safe_mode(c, reason)
  if not c.safe then call('HSET', c.K .. ':volume', 'safe', reason) end
  c.safe = reason
end

-- volume_open {make, uuid, chunk_size, replicas, uid, gid, seq, outage_ms, lease_ms, orphan_grace_ms,
-- condemned_grace_ms, trash_ms?} -> uuid, seq, why it is in SAFE mode or '', made
-- Makes the volume and its root where there is none and `make` is set. ESTALE where the caller knows
-- another volume, by its uuid; SAFE mode where it has seen a later change, `seq`, than is here.
internal('volume_open', { first = true }, {
  make = 'flag', uuid = 'bytes', chunk_size = 'count', replicas = 'count', uid = 'id', gid = 'id', seq = 'count',
  outage_ms = 'count', lease_ms = 'count', orphan_grace_ms = 'count', condemned_grace_ms = 'count', trash_ms = 'count?',
}, function(c, a, argv)
  local volume, made = c.K .. ':volume', 0
  local there = call('HMGET', volume, 'uuid', 'seq')
  if argv[4] ~= '' and there[1] ~= argv[4] then return { ESTALE } end
  if not there[1] then
    if not a.make then return { ENOENT } end
    call('HSET', volume, 'uuid', a.uuid, 'chunk_size', text(a.chunk_size), 'replicas', text(a.replicas), 'seq', 1,
      'next_ino', 1, 'next_session', 0, 'next_node', 0, 'files', 0, 'directories', 1, 'extents', 0, 'bytes', 0)
    c:add_inode(1, {
      S_IFDIR + 0x1ED, a.uid, a.gid, 2, 0, c.s, c.ns, c.s, c.ns, c.s, c.ns,
      0, a.chunk_size, 0, 1, 0, 0, '', a.replicas, 1,
    })
    there, made = { a.uuid, 1 }, 1
  end
  for _, name in ipairs({ 'lease_ms', 'outage_ms', 'orphan_grace_ms', 'condemned_grace_ms' }) do
    call('HSET', volume, name, text(a[name]))
  end
  call('HSET', volume, 'trash_ms', text(a.trash_ms or 0))
  local seq = tonumber(there[2])
  if seq < a.seq then
    enter_safe_mode(c, string.format('the metadata ends at change %d, but change %d was seen', seq, a.seq))
  end
  if not c.safe then c:excuse_outage() end
  return { 0, there[1], seq, c.safe or '', made }
end)

-- When the node was heard again after its last silence, and how often that happened of late; see membership.py.
-- Silence while nobody listened is no silence.
local function life(c, before, silence_ms, calm_ms)
  if not before then return c.ms, 0 end
  local seen, since, returns = before[8], before[9] or before[8], before[10] or 0
  if c.ms - seen <= silence_ms or c:away_ms() > 0 then return since, returns end
  return c.ms, seen - since >= calm_ms and 1 or returns + 1
end

-- heartbeat {uuid, address, rack, space, used, free, total, volume, seq, silence_ms, calm_ms, store_ms?} -> node
-- number, volume's uuid, seq, why it is in SAFE mode or '', now in ms
-- EXDEV for a node of another volume, ESTALE for one that was forgotten, EROFS for a new one in SAFE mode. SAFE mode for a node that was told of a later
-- change than is here, and for one of another volume where this one never had a node: Redis is another, or was emptied.
internal('heartbeat', {}, {
  uuid = 'bytes', address = 'bytes', rack = 'bytes', space = 'bytes', used = 'count', free = 'count', total = 'count',
  volume = 'bytes', seq = 'count', silence_ms = 'count', calm_ms = 'count', store_ms = 'count?',
}, function(c, a, argv)
  local numbers, seq = c.K .. ':node_numbers', c:setting('seq')
  if a.volume ~= '' and a.volume ~= argv[4] then
    if c:setting('next_node') == 0 then
      enter_safe_mode(c, string.format('no storage node ever belonged to this volume, but one of volume %s has come: '
        .. 'this Redis is empty, or another. Start the right one; or dcs recover; or, if what that node has is not '
        .. 'wanted, stop the naming servers, empty this Redis, and give the node an empty data directory', a.volume))
    end
    return { EXDEV }
  end
  if a.volume ~= '' and a.seq > seq then
    enter_safe_mode(c, string.format('the metadata ends at change %d, but a storage node knows of %d', seq, a.seq))
  end
  if call('SISMEMBER', c.K .. ':forgotten', a.uuid) == 1 then return { ESTALE } end
  local number = call('HGET', numbers, a.uuid)
  if not number then
    if c.safe then return { EROFS } end -- It would keep to this volume from then on.
    number = text(call('HINCRBY', c.K .. ':volume', 'next_node', 1))
    call('HSET', numbers, a.uuid, number)
  end
  local before = call('HGET', c.K .. ':nodes', number)
  local since, returns = life(c, before and unpack_value(before), a.silence_ms, a.calm_ms)
  call('HSET', c.K .. ':nodes', number,
    pack({ a.uuid, a.address, a.rack, a.space, a.used, a.free, a.total, c.ms, since, returns, a.store_ms or 0 }))
  return { 0, tonumber(number), argv[4], seq, c.safe or '', c.ms }
end)

-- nodes {} -> now in ms, number, record, since when it is drained in ms or 0, number, ...
read('nodes', {}, function(c)
  local reply, draining = { 0, c.ms }, {}
  local drains = call('HGETALL', c.K .. ':draining')
  for i = 1, #drains, 2 do draining[drains[i]] = tonumber(drains[i + 1]) end
  local rows = call('HGETALL', c.K .. ':nodes')
  for i = 1, #rows, 2 do
    local n = #reply
    reply[n + 1], reply[n + 2], reply[n + 3] = rows[i], rows[i + 1], draining[rows[i]] or 0
  end
  return reply
end)

-- drain {node, drain} -> ; the node is to be emptied, or not any more. ENOENT for a node that is not known.
internal('drain', {}, { node = 'count', drain = 'flag' }, function(c, a)
  local number = text(a.node)
  if call('HEXISTS', c.K .. ':nodes', number) == 0 then return { ENOENT } end
  if a.drain then
    call('HSETNX', c.K .. ':draining', number, text(c.ms))
  else
    call('HDEL', c.K .. ':draining', number)
  end
  return { 0 }
end)

-- Maps name the nodes from now on. Those of them that are being emptied are so since now: what a walk over all files
-- has not found on them before says nothing of these.
function Call:drain_anew(nodes)
  for node in pairs(nodes) do
    local number = text(struct.unpack('>I2', node))
    if call('HEXISTS', self.K .. ':draining', number) == 1 then
      call('HSET', self.K .. ':draining', number, text(self.ms))
    end
  end
end

-- forget {node, silent_ms, since_ms} -> ; it will not come back. ENOENT for one that is not known, EBUSY for one that was
-- heard of within so long, or that is not being emptied since then.
internal('forget', {}, { node = 'count', silent_ms = 'count', since_ms = 'count' }, function(c, a)
  local number = text(a.node)
  local record = call('HGET', c.K .. ':nodes', number)
  if not record then return { ENOENT } end
  local node = unpack_value(record)
  local since = call('HGET', c.K .. ':draining', number)
  if c.ms - node[8] < a.silent_ms or since ~= text(a.since_ms) then return { EBUSY } end
  call('SADD', c.K .. ':forgotten', node[1])
  for _, key in ipairs({ ':nodes', ':draining', ':node_facts', ':doubted', ':judged' }) do call('HDEL', c.K .. key, number) end
  return { 0 }
end)

-- statfs {} -> files, directories, bytes
read('statfs', {}, function(c)
  local v = call('HMGET', c.K .. ':volume', 'files', 'directories', 'bytes')
  return { 0, tonumber(v[1]), tonumber(v[2]), tonumber(v[3]) }
end)

-- status {} -> a map of what the volume holds and what waits to be done
read('status', {}, function(c)
  local v = call('HMGET', c.K .. ':volume', 'uuid', 'files', 'directories', 'bytes', 'extents', 'seq',
    'chunk_size', 'replicas', 'held', 'brake', 'trash_bytes', 'stored_seq')
  local snapshot = call('ZRANGE', c.K .. ':snapshots', -1, -1, 'WITHSCORES')
  return { 0, {
    uuid = v[1], files = tonumber(v[2]), directories = tonumber(v[3]), bytes = tonumber(v[4]), extents = tonumber(v[5]),
    seq = tonumber(v[6]), safe = c.safe or '', chunk_size = tonumber(v[7]), replicas = tonumber(v[8]),
    sessions = call('ZCARD', c.K .. ':sessions'),
    orphans = call('ZCOUNT', c.K .. ':orphans', '-inf', text(c.ms + c:setting('orphan_grace_ms'))),
    stubs = call('ZCOUNT', c.K .. ':orphans', text(c.ms + c:setting('orphan_grace_ms') + 1), '+inf'),
    trash = call('ZCARD', c.K .. ':trash'), trash_bytes = tonumber(v[11] or 0),
    purging = call('ZCARD', c.K .. ':purge'), deletions_pending = call('ZCARD', c.K .. ':condemned'),
    recounting = call('HLEN', c.K .. ':recount'), dropped = call('ZCARD', c.K .. ':dropped'),
    survey = call('GET', c.K .. ':survey') or '',
    under_replicated = call('SCARD', c.K .. ':thin'), damaged = call('HLEN', c.K .. ':damaged'),
    garbage = call('ZCARD', c.K .. ':garbage'), long = call('ZCARD', c.K .. ':long'),
    snapshot_age_s = floor((c.ms - tonumber(snapshot[2] or c.ms)) / 1000),
    stored_seq = tonumber(v[12] or 0), held = v[9] or '', brake = v[10] or '',
  } }
end)
