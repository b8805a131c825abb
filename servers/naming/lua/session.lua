-- Sessions: a client's lease, its open files and the results of its operations.

local function facts(c)
  local v = call('HMGET', c.K .. ':volume', 'uuid', 'chunk_size', 'replicas', 'seq', 'safe', 'lease_ms')
  return {
    uuid = v[1], chunk_size = tonumber(v[2]), replicas = tonumber(v[3]), seq = tonumber(v[4]),
    safe = v[5] and 1 or 0, lease_ms = tonumber(v[6]), s = c.s, ns = c.ns,
  }
end

-- session_open {host, what} -> session, facts of the volume
internal('session_open', function(c, a)
  local session = call('HINCRBY', c.K .. ':volume', 'next_session', 1)
  call('ZADD', c.K .. ':sessions', c.ms + c:setting('lease_ms'), string.format('%d', session))
  call('HSET', c:key('s', session), 'host', a.host, 'what', a.what, 'opened_s', c.s)
  return { 0, session, facts(c) }
end)

-- session_renew {} -> facts of the volume
internal('session_renew', function(c)
  local sessions = c.K .. ':sessions'
  local lease = call('ZSCORE', sessions, c.session)
  if not lease or tonumber(lease) < c.ms then return { SESSION_LOST } end
  call('ZADD', sessions, c.ms + c:setting('lease_ms'), c.session)
  return { 0, facts(c) }
end)

-- Lets go of up to a bounded number of the session's open files. True when none is left.
local function release_all(c, session)
  local key = c.K .. ':so:' .. session
  local inos = call('SPOP', key, LIMIT.extents)
  for _, ino in ipairs(inos) do call('SREM', c.K .. ':o:' .. ino, session) end
  return call('EXISTS', key) == 0
end

local function forget(c, session)
  call('ZREM', c.K .. ':sessions', session)
  if not release_all(c, session) then
    call('ZADD', c.K .. ':sessions', 0, session) -- lapsed: the expiry job goes on
    return false
  end
  call('DEL', c.K .. ':op:' .. session, c.K .. ':s:' .. session)
  return true
end

-- session_close {} -> ; what it had open is closed
internal('session_close', function(c)
  forget(c, c.session)
  return { 0 }
end)

-- expire_sessions {count} -> how many sessions whose lease ran out were forgotten
internal('expire_sessions', function(c, a)
  local lapsed = call('ZRANGEBYSCORE', c.K .. ':sessions', '-inf', c.ms - 1, 'LIMIT', 0, a.count)
  local done = 0
  for _, session in ipairs(lapsed) do
    if forget(c, session) then done = done + 1 end
  end
  return { 0, done }
end)
