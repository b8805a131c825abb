-- commit {ino, chunks, end, mtime?, synced, begun?, append?, unused?, unpublished?, version?} -> attributes, offset of
-- what was appended, the data version before
-- In one step: lays the segments of `chunks` ({index, segments, index, segments, ...}, the indexes rising, the
-- segments sorted and without overlap) over the file's, makes it at least `end` bytes long and sets its times.
-- `append` ({extent, length, nodes, ...}) goes to the end that the file has now; but for what the file shows already,
-- because an earlier commit was given up unanswered and was done all the same: then the offset is -1.
-- `synced` says that all of it is on stable storage; else `begun`, in ms, when the first of it was sent to the nodes:
-- they may have lost power since. `unused` ({extent, nodes, ...}) was stored too, and is
-- already covered by what is committed here: it is condemned. `unpublished`: EEXIST once the file has a name.
-- `version`: ESTALE once the content is not of that data version any more.

local function is_extent(extent, length, nodes, chunk)
  return type(extent) == 'string' and #extent == 16 and whole(length, 1, chunk)
    and type(nodes) == 'string' and #nodes > 0 and #nodes % 2 == 0
end

-- Whether they are segments of a chunk, how many values they have, and where they end.
local function check_segments(segments, chunk)
  local at = 0
  if type(segments) ~= 'table' or #segments == 0 or #segments % 5 ~= 0 then return false end
  for i = 1, #segments, 5 do
    local offset, length = segments[i], segments[i + 3]
    if not (is_extent(segments[i + 1], length, segments[i + 4], chunk) and whole(offset, at, chunk - length)
        and whole(segments[i + 2], 0, LIMIT.chunk_high - length)) then
      return false
    end
    at = offset + length
  end
  return true, #segments, at
end

-- The errno of what is wrong with the chunks; nil when nothing is.
local function check_chunks(chunks, chunk, upto)
  local last, values = -1, 0
  if #chunks > 2 * LIMIT.chunks then return E2BIG end
  if #chunks % 2 ~= 0 then return EINVAL end
  for i = 1, #chunks, 2 do
    local is_good, count, stop = check_segments(chunks[i + 1], chunk)
    if not is_good or not whole(chunks[i], last + 1, EXACT) or chunks[i] * chunk + stop > upto then return EINVAL end
    last, values = chunks[i], values + count
  end
  return values > 5 * LIMIT.segments and E2BIG or nil
end

local function check_append(append, chunk)
  local bytes = 0
  if #append % 3 ~= 0 then return EINVAL end
  for i = 1, #append, 3 do
    if not is_extent(append[i], append[i + 1], append[i + 2], LIMIT.chunk_high) then return EINVAL end
    bytes = bytes + append[i + 1]
    if bytes > LIMIT.appended * chunk then return E2BIG end
  end
  return #append > 3 * LIMIT.segments and E2BIG or nil
end

local function not_yet_appended(c, ino, append)
  local left = {}
  for i = 1, #append, 3 do
    local key, field = c:owner_key(append[i])
    local blob = call('HGET', key, field)
    if not blob or unpack_value(blob)[1] ~= ino then
      local n = #left
      left[n + 1], left[n + 2], left[n + 3] = append[i], append[i + 1], append[i + 2]
    end
  end
  return left
end

local function check_unused(unused)
  if #unused % 2 ~= 0 or #unused > 2 * LIMIT.segments then return EINVAL end
  for i = 1, #unused, 2 do
    if not is_extent(unused[i], 1, unused[i + 1], 1) then return EINVAL end
  end
end

-- The appended extents as segments of the chunks they fall into, from `offset` on.
local function place_appended(append, offset, chunk)
  local chunks = {}
  for i = 1, #append, 3 do
    local extent, length, nodes, within = append[i], append[i + 1], append[i + 2], 0
    while within < length do
      local index, start = floor(offset / chunk), offset % chunk
      local step = min(chunk - start, length - within)
      if chunks[#chunks - 1] ~= index then
        chunks[#chunks + 1] = index
        chunks[#chunks + 1] = {}
      end
      local segments = chunks[#chunks]
      local n = #segments
      segments[n + 1], segments[n + 2], segments[n + 3], segments[n + 4], segments[n + 5] =
        start, extent, within, step, nodes
      within, offset = within + step, offset + step
    end
  end
  return chunks, offset
end

-- Whether an extent that no map shows may be shown now. Not what was condemned: it may be deleted any moment.
-- Not what another session left, while it lives or once extents of it were found to be garbage.
local function may_be_shown(c, extent, session, field)
  if #session > 15 or #field > 15 or call('ZSCORE', c.K .. ':condemned', extent) then return false end
  return session == c.session
    or (not c:is_alive(session) and call('SISMEMBER', c.K .. ':collected', session) == 0)
end

-- Who will show each of the extents: extent -> {key, field, nodes, is new, {ino, chunk, ...}}; or nil and the errno.
local function owners_of(c, ino, chunks)
  local owners = {}
  for i = 1, #chunks, 2 do
    local index, segments = chunks[i], chunks[i + 1]
    for j = 2, #segments, 5 do
      local extent = segments[j]
      local owner = owners[extent]
      if not owner then
        local key, field, session = c:owner_key(extent)
        local blob = call('HGET', key, field)
        if not blob and not may_be_shown(c, extent, session, field) then return nil, ESTALE end
        owner = { key, field, segments[j + 3], not blob, blob and unpack_value(blob) or { ino } }
        if owner[5][1] ~= ino then return nil, EINVAL end
        owners[extent] = owner
      end
      local places, is_there = owner[5], false
      for k = 2, #places do is_there = is_there or places[k] == index end
      if not is_there then places[#places + 1] = index end
    end
  end
  return owners
end

-- All nodes that are to have any of the extents.
local function nodes_of(owners)
  local nodes = {}
  for _, owner in pairs(owners) do
    for i = 1, #owner[3], 2 do nodes[owner[3]:sub(i, i + 1)] = true end
  end
  return nodes
end

-- Notes who shows each extent, so that it is known to be needed and found again from its id.
local function reference(c, owners, replicas)
  local made, new = 0, {}
  for extent, owner in pairs(owners) do
    call('HSET', owner[1], owner[2], pack(owner[5]))
    if owner[4] then
      made, new[extent] = made + 1, owner
      if #owner[3] / 2 < replicas then call('SADD', c.K .. ':thin', extent) end
    end
  end
  if made > 0 then
    c:add('extents', made)
    if call('EXISTS', c.K .. ':draining') == 1 then c:drain_anew(nodes_of(new)) end
  end
end

-- What was stored in vain is condemned, unless a map shows it or somebody else may still commit it.
local function condemn_unused(c, unused)
  for i = 1, #unused, 2 do
    local key, field, session = c:owner_key(unused[i])
    local is_ours = session == c.session or not c:is_alive(session)
    if is_ours and call('HEXISTS', key, field) == 0 then c:condemn(unused[i], unused[i + 1]) end
  end
end

local function set(inode, field, time) inode[field], inode[field + 1] = time[1], time[2] end

-- The content changed when it was written, as the writer's stat has shown all the while, if its clock is sane:
-- storing it is no change of its own. Where others changed the content later, it changes now.
local function set_times(c, inode, mtime)
  local function is_before(field)
    return mtime[1] < inode[field] or (mtime[1] == inode[field] and mtime[2] < inode[field + 1])
  end
  if not mtime or mtime == true or mtime[1] > c.s + 1 then
    c:modify(inode)
  elseif not is_before(CTIME) then
    set(inode, CTIME, mtime)
    set(inode, MTIME, mtime)
  elseif not is_before(MTIME) then
    set(inode, MTIME, mtime)
  else
    c:modify(inode)
  end
end

local WANTS = {
  ino = 'ino', chunks = 'list', ['end'] = 'size', mtime = 'time?', synced = 'flag', begun = 'count?', append = 'list?',
  unused = 'list?', unpublished = 'flag', version = 'count?',
}
mutation('commit', {}, WANTS, function(c, a)
  local inode = c:inode(a.ino)
  if not inode then return ESTALE end
  if not is(inode[MODE], S_IFREG) then return EINVAL end
  if a.unpublished and inode[NLINK] > 0 then return EEXIST end
  if a.version and a.version ~= inode[VERSION] then return ESTALE end
  local chunk, chunks, upto, offset, problem = inode[CHUNK], a.chunks, a['end'], 0, nil
  if a.append then
    problem = check_append(a.append, chunk)
    if problem then return problem end
    local append = not_yet_appended(c, a.ino, a.append)
    chunks, upto = place_appended(append, inode[SIZE], chunk)
    offset = #append == #a.append and inode[SIZE] or -1
  else
    problem = check_chunks(chunks, chunk, upto)
  end
  problem = problem or check_unused(a.unused or {})
  if problem then return problem end
  if upto > LIMIT.file then return EFBIG end
  local owners
  owners, problem = owners_of(c, a.ino, chunks)
  if not owners then return problem end

  local change, before = 0, inode[VERSION]
  reference(c, owners, inode[REPLICAS])
  for i = 1, #chunks, 2 do
    local old = c:chunk(a.ino, chunks[i])
    change = change + c:set_chunk(a.ino, chunks[i], old, lay_over(old, chunks[i + 1]))
  end
  condemn_unused(c, a.unused or {})
  if a.begun and not a.synced then c:doubt_broken(nodes_of(owners), a.begun) end
  if change ~= 0 then c:add('bytes', change) end
  inode[STORED] = inode[STORED] + change
  inode[SIZE] = max(inode[SIZE], upto)
  inode[VERSION] = c:next_seq()
  if not a.synced then inode[UNSYNCED] = c.s end
  set_times(c, inode, a.mtime)
  c:keep(a.ino)
  return c:done('commit', { a.ino }, {}, c:attributes(a.ino), offset, before)
end)
