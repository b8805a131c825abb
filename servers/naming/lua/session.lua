-- Sessions: a client's lease, its open files and the results of its operations.

local SESSION_FACT_BYTES_MAX = 255
local TOLD_BYTES_MAX = 4096

local function facts(c)
  local v = call('HMGET', c.K .. ':volume', 'uuid', 'chunk_size', 'replicas', 'seq', 'safe', 'lease_ms')
  return {
    uuid = v[1], chunk_size = tonumber(v[2]), replicas = tonumber(v[3]), seq = tonumber(v[4]),
    safe = v[5] and 1 or 0, lease_ms = tonumber(v[6]), s = c.s, ns = c.ns,
  }
end

-- session_open {host, what} -> session, facts of the volume
internal('session_open', {}, { host = 'bytes', what = 'bytes' }, function(c, a)
  local session = call('HINCRBY', c.K .. ':volume', 'next_session', 1)
  call('ZADD', c.K .. ':sessions', text(c.ms + c:setting('lease_ms')), text(session))
  call('HSET', c:key('s', session), 'host', a.host:sub(1, SESSION_FACT_BYTES_MAX),
    'what', a.what:sub(1, SESSION_FACT_BYTES_MAX), 'opened_s', text(c.s))
  return { 0, session, facts(c) }
end)

-- session_renew {told?} -> facts of the volume; what the client counts, for whoever asks how the cluster is
internal('session_renew', {}, { told = 'bytes?' }, function(c, a)
  if not c:is_alive(c.session) then return { SESSION_LOST } end
  if a.told and #a.told <= TOLD_BYTES_MAX then call('HSET', c.K .. ':s:' .. c.session, 'told', a.told) end
  call('ZADD', c.K .. ':sessions', text(c.ms + c:setting('lease_ms')), c.session)
  return { 0, facts(c) }
end)

-- sessions {count} -> session, host, what, what it told last, ...: those that told anything
read('sessions', { count = 'count' }, function(c, a)
  local reply = { 0 }
  for _, session in ipairs(call('ZRANGEBYSCORE', c.K .. ':sessions', text(c.ms), '+inf', 'LIMIT', 0, text(a.count))) do
    local s, n = call('HMGET', c.K .. ':s:' .. session, 'host', 'what', 'told'), #reply
    if s[3] then reply[n + 1], reply[n + 2], reply[n + 3], reply[n + 4] = tonumber(session), s[1], s[2], s[3] end
  end
  return reply
end)

-- Forgets the session, as far as one call may go. Returns whether nothing is left of it.
local function forget(c, session)
  local open = c.K .. ':so:' .. session
  for _, ino in ipairs(call('SPOP', open, LIMIT.extents)) do call('HDEL', c.K .. ':o:' .. ino, session) end
  if call('EXISTS', open) == 1 then
    call('ZADD', c.K .. ':sessions', 0, session) -- over: the expiry job goes on
    return false
  end
  call('ZREM', c.K .. ':sessions', session)
  call('DEL', c.K .. ':op:' .. session, c.K .. ':s:' .. session)
  return true
end

-- session_close {} -> ; what it had open is closed
internal('session_close', {}, {}, function(c)
  if call('ZSCORE', c.K .. ':sessions', c.session) then forget(c, c.session) end
  return { 0 }
end)

-- A background job is back: the time in which nobody could renew a lease counts for none.
function Call:excuse_outage()
  local away, sessions = self:away_ms(), self.K .. ':sessions'
  call('HSET', self.K .. ':volume', 'alive_ms', text(self.ms))
  if away == 0 then return end
  local rows = call('ZRANGE', sessions, 0, -1, 'WITHSCORES')
  for i = 1, #rows, 2 do
    local ends = tonumber(rows[i + 1])
    if ends > 0 then call('ZADD', sessions, text(ends + away), rows[i]) end
  end
end

-- expire_sessions {count} -> how many sessions whose lease ran out were forgotten
internal('expire_sessions', {}, { count = 'count' }, function(c, a)
  if c.safe then return { 0, 0 } end
  c:excuse_outage()
  local lapsed = call('ZRANGEBYSCORE', c.K .. ':sessions', '-inf', text(c.ms - 1), 'LIMIT', 0, text(a.count))
  local done = 0
  for _, session in ipairs(lapsed) do
    if forget(c, session) then done = done + 1 else break end
  end
  return { 0, done }
end)
