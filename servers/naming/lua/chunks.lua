-- Chunk maps: laying new segments over old ones, cutting, and letting extents go.

-- The parts of `old` that `new` leaves visible, and `new`: one sorted list without overlap.
-- Both lists are sorted and without overlap.
local function lay_over(old, new)
  local out, size, j = {}, 0, 1
  local function emit(offset, extent, within, length, nodes)
    local last = size - 4
    if size > 0 and out[last + 1] == extent and out[last] + out[last + 3] == offset
        and out[last + 2] + out[last + 3] == within then
      out[last + 3] = out[last + 3] + length
      return
    end
    out[size + 1], out[size + 2], out[size + 3], out[size + 4], out[size + 5] = offset, extent, within, length, nodes
    size = size + 5
  end
  local function emit_new_before(offset)
    while j <= #new and new[j] < offset do
      emit(new[j], new[j + 1], new[j + 2], new[j + 3], new[j + 4])
      j = j + 5
    end
  end
  local covered = 0 -- everything below is covered by what was emitted of `new`
  for i = 1, #old, 5 do
    local start, stop = old[i], old[i] + old[i + 3]
    emit_new_before(start)
    if j > 1 then covered = new[j - 5] + new[j - 2] end
    local at = max(start, covered)
    while at < stop do
      local upto = (j <= #new and new[j] < stop) and new[j] or stop
      if upto > at then
        emit(at, old[i + 1], old[i + 2] + at - start, upto - at, old[i + 4])
      end
      if upto == stop then break end
      emit(new[j], new[j + 1], new[j + 2], new[j + 3], new[j + 4])
      at = new[j] + new[j + 3]
      j = j + 5
    end
  end
  emit_new_before(math.huge)
  return out
end

-- The segments that lie below `limit` bytes of the chunk.
local function cut_at(segments, limit)
  local out = {}
  for i = 1, #segments, 5 do
    local length = min(segments[i + 3], limit - segments[i])
    if length > 0 then
      local n = #out
      out[n + 1], out[n + 2], out[n + 3], out[n + 4], out[n + 5] =
        segments[i], segments[i + 1], segments[i + 2], length, segments[i + 4]
    end
  end
  return out
end

local function covered_bytes(segments)
  local sum = 0
  for i = 4, #segments, 5 do sum = sum + segments[i] end
  return sum
end

function Call:owner_key(extent)
  local session, counter = struct.unpack('>I8I8', extent)
  return self:key('x', session), text(counter), text(session)
end

-- The extent's bytes are not needed any more: after the grace, the nodes are told to delete it.
function Call:condemn(extent, nodes)
  self.condemn_due = self.condemn_due or text(self.ms + self:setting('condemned_grace_ms'))
  call('ZADD', self.K .. ':condemned', self.condemn_due, extent)
  call('HSET', self.K .. ':condemned_nodes', extent, nodes)
end

-- Chunk `index` does not show the extent any more; when no chunk does, it is condemned.
function Call:unreference(extent, index, nodes)
  local key, field = self:owner_key(extent)
  local blob = call('HGET', key, field)
  if not blob then return end
  local owner, left = unpack_value(blob), nil
  for i = 2, #owner do
    if owner[i] ~= index then
      left = left or { owner[1] }
      left[#left + 1] = owner[i]
    end
  end
  if left then
    call('HSET', key, field, pack(left))
    return
  end
  call('HDEL', key, field)
  self:add('extents', -1)
  call('SREM', self.K .. ':thin', extent)
  for i = 1, #nodes, 2 do call('HDEL', self.K .. ':damaged', extent .. nodes:sub(i, i + 1)) end
  self:condemn(extent, nodes)
end

-- Returns how many extents were looked at; those in the set `shown` stay.
function Call:unreference_all(segments, index, shown)
  local seen, count = shown or {}, 0
  for i = 2, #segments, 5 do
    local extent = segments[i]
    if not seen[extent] then
      seen[extent] = true
      self:unreference(extent, index, segments[i + 3])
      count = count + 1
    end
  end
  return count
end

local function extents_of(segments)
  local set = {}
  for i = 2, #segments, 5 do set[segments[i]] = true end
  return set
end

-- Where the maps go that this call puts aside: let go of in steps by `reap`.
function Call:aside(ino)
  if not self.aside_name then
    self.aside_name = string.format('t:%d:%d', ino, self:next_seq())
    call('ZADD', self.K .. ':purge', text(self.ms), self.aside_name)
  end
  return self.K .. ':' .. self.aside_name
end

-- Whether nothing of `old` has changed in `new`, which goes on after it: what is only appended to lets nothing go.
local function goes_on(new, old)
  if #new < #old then return false end
  for i = 1, #old do
    if new[i] ~= old[i] then return false end
  end
  return true
end

-- The chunk's list is long: compaction looks at it, but not before the time that it was put off to, if it was.
function Call:note_long(ino, index, is_very_long)
  local key, name = self.K .. ':long', string.format('%d:%d', ino, index)
  if tonumber(call('ZSCORE', key, name) or 0) > self.ms then return end
  call('ZADD', key, is_very_long and '0' or text(self.ms), name)
end

-- Replaces what chunk `index` shows. Returns by how many bytes the stored size changed.
function Call:set_chunk(ino, index, old, new)
  local key, field = self:key('m', ino), text(index)
  if #new == 0 then call('HDEL', key, field) else call('HSET', key, field, pack(new)) end
  if #new >= 5 * LIMIT.long then
    self:note_long(ino, index, #new >= 5 * LIMIT.very_long)
  elseif #old >= 5 * LIMIT.long then
    call('ZREM', self.K .. ':long', string.format('%d:%d', ino, index))
  end
  if goes_on(new, old) then return covered_bytes(new) - covered_bytes(old) end
  if #old > 5 * LIMIT.let_go then
    call('HSET', self:aside(ino), field, pack(old))
  else
    self:unreference_all(old, index, extents_of(new))
  end
  return covered_bytes(new) - covered_bytes(old)
end

function Call:chunk(ino, index)
  local blob = call('HGET', self:key('m', ino), text(index))
  return blob and unpack_value(blob) or {}
end

-- The file's last chunks, downwards from `last`: all of those from `keep` on, or one more than a call
-- may touch. Returns them and the index down to which there are no others.
local function last_chunks(key, keep, last)
  local indexes, bottom = {}, keep
  local is_listed = call('HLEN', key) <= LIMIT.listed
  if not is_listed then
    bottom = max(keep, last - LIMIT.listed + 1)
    for index = last, bottom, -1 do
      if call('HEXISTS', key, text(index)) == 1 then indexes[#indexes + 1] = index end
      if #indexes > LIMIT.chunks then return indexes, index end
    end
  end
  if is_listed or (#indexes == 0 and bottom > keep) then
    bottom = keep
    for _, field in ipairs(call('HKEYS', key)) do
      if tonumber(field) >= keep then indexes[#indexes + 1] = tonumber(field) end
    end
    table.sort(indexes, function(one, other) return one > other end)
  end
  return indexes, bottom
end

-- Cuts the file to `size` bytes: at once, or a step of it when it has very many chunks.
-- Returns the size reached: the one asked for, or a larger one that asks for another call.
function Call:cut_file(ino, inode, size)
  local chunk, key = inode[CHUNK], self:key('m', ino)
  if size == 0 and call('HLEN', key) > LIMIT.chunks then -- the whole map goes aside
    call('RENAME', key, self:aside(ino))
    self:add('bytes', -inode[STORED])
    inode[STORED] = 0
    return 0
  end
  local indexes, bottom = last_chunks(key, floor(size / chunk), floor((inode[SIZE] - 1) / chunk))
  local reached = max(size, bottom * chunk)
  if #indexes > LIMIT.chunks then reached = max(size, (indexes[LIMIT.chunks + 1] + 1) * chunk) end
  local change = 0
  for i = 1, min(#indexes, LIMIT.chunks) do
    local old = self:chunk(ino, indexes[i])
    local new = cut_at(old, reached - indexes[i] * chunk)
    if covered_bytes(new) ~= covered_bytes(old) then
      change = change + self:set_chunk(ino, indexes[i], old, new)
    end
  end
  inode[STORED] = inode[STORED] + change
  if change ~= 0 then self:add('bytes', change) end
  return reached
end
