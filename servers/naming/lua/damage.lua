-- Replicas that are damaged, or not where the map says; and nodes that may have lost some.

-- Whether what is left of a damaged replica is of no use to anybody: the map names good ones only,
-- or no map shows the extent and nobody will. A map that is being let go of still counts.
function Call:is_healed(extent)
  local owner, _, nodes = self:whereabouts(extent)
  if not owner then
    local key, field, session = self:owner_key(extent)
    if call('HEXISTS', key, field) == 1 then return false end
    return not self:is_alive(session) or call('ZSCORE', self.K .. ':condemned', extent)
  end
  if call('SISMEMBER', self.K .. ':thin', extent) == 1 then return false end
  for i = 1, #nodes, 2 do
    if call('HEXISTS', self.K .. ':damaged', extent .. nodes:sub(i, i + 1)) == 1 then return false end
  end
  return true
end

-- damage {extent, node, why} -> 1 if it was not known; 0 also for a replica that no map names
internal('damage', {}, { extent = 'bytes', node = 'count', why = 'bytes' }, function(c, a)
  if #a.extent ~= 16 or a.node > 65535 then return { EINVAL } end
  local owner, _, nodes = c:whereabouts(a.extent)
  local number = struct.pack('>I2', a.node)
  for i = 1, owner and #nodes or 0, 2 do
    if nodes:sub(i, i + 1) == number then
      return { 0, call('HSET', c.K .. ':damaged', a.extent .. number, pack({ c.s, a.why })) }
    end
  end
  return { 0, 0 }
end)

-- sound {extent, node} -> ; the node has read the replica and found it good
internal('sound', {}, { extent = 'bytes', node = 'id' }, function(c, a)
  if #a.extent ~= 16 or a.node > 65535 then return { EINVAL } end
  call('HDEL', c.K .. ':damaged', a.extent .. struct.pack('>I2', a.node))
  return { 0 }
end)

-- healed {extents} -> those of them whose damaged replicas nobody can need
read('healed', { extents = 'list' }, function(c, a)
  local reply = { 0 }
  if c.safe then return reply end
  if not texts(a.extents) then return { EINVAL } end
  for _, extent in ipairs(a.extents) do
    if #extent == 16 and c:is_healed(extent) then reply[#reply + 1] = extent end
  end
  return reply
end)

local function put_in_doubt(c, number) call('HSET', c.K .. ':doubted', number, text(c.ms)) end

local HOLDS = { node = 'id', start = 'bytes', held = 'bytes', lost = 'count', facts = 'bytes', ended = 'flag' }

-- holds {node, start, held, lost, facts, ended} -> 1 when the node is in doubt now
-- What a node says it holds. It is in doubt, until it was asked for each extent, when it lost some since its
-- last word, or was started again and this is not what it said at its end: without such a word it may have taken
-- more than it had told of, and lost it with the power.
internal('holds', {}, HOLDS, function(c, a)
  local key, number = c.K .. ':node_facts', text(a.node)
  local blob, broken_ms = call('HGET', key, number), 0
  if blob then
    local start, held, lost, _, ended, broken_before = unpack(unpack_value(blob))
    broken_ms = broken_before or 0
    local came_back_otherwise = start ~= a.start and not (ended == 1 and held == a.held)
    if came_back_otherwise or a.lost > (start == a.start and lost or 0) then
      broken_ms = c.ms
      call('HSET', c.K .. ':volume', 'broken_ms', text(c.ms))
      put_in_doubt(c, number)
    end
  end
  call('HSET', key, number, pack({ a.start, a.held, a.lost, a.facts, a.ended and 1 or 0, broken_ms }))
  return { 0, call('HEXISTS', c.K .. ':doubted', number) }
end)

-- The nodes are to have extents that were stored since `begun`, in ms, without a sync. Who lost some after that, or
-- was started again without having ended in order, was asked for all that maps showed then: these were not among it.
function Call:doubt_broken(nodes, begun)
  if (self:setting('broken_ms') or 0) <= begun then return end
  for node in pairs(nodes) do
    local number = text(struct.unpack('>I2', node))
    local blob = call('HGET', self.K .. ':node_facts', number)
    if blob and (unpack_value(blob)[6] or 0) > begun then put_in_doubt(self, number) end
  end
end

-- facts {} -> node number, what it says of itself, since when it is in doubt in ms or 0, node number, ...
read('facts', {}, function(c)
  local reply, rows = { 0 }, call('HGETALL', c.K .. ':node_facts')
  for i = 1, #rows, 2 do
    local n = #reply
    reply[n + 1], reply[n + 2] = rows[i], unpack_value(rows[i + 1])[4]
    reply[n + 3] = tonumber(call('HGET', c.K .. ':doubted', rows[i]) or 0)
  end
  return reply
end)

-- doubted {} -> node number, since when in ms, node number, ...
read('doubted', {}, function(c)
  return { 0, unpack(call('HGETALL', c.K .. ':doubted')) }
end)

-- believed {node, since} -> ; it was asked for each extent, and nothing came up meanwhile
internal('believed', {}, { node = 'id', since = 'count' }, function(c, a)
  if call('HGET', c.K .. ':doubted', text(a.node)) == text(a.since) then
    call('HDEL', c.K .. ':doubted', text(a.node))
  end
  return { 0 }
end)
