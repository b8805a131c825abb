-- commit {ino, chunks, end, mtime, synced, append?} -> attributes, offset of what was appended
-- In one step: lays the segments of `chunks` ({index, segments, index, segments, ...}, sorted and
-- without overlap) over the file's, makes it at least `end` bytes long and sets its times.
-- `append` ({extent, length, nodes, ...}) goes to the end that the file has now.
-- `synced` says that all of it is on stable storage.

local function check_segments(segments, chunk)
  local at = 0
  for i = 1, #segments, 5 do
    local offset, length = segments[i], segments[i + 3]
    if offset < at or length <= 0 or offset + length > chunk or #segments[i + 1] ~= 16 or #segments[i + 4] % 2 ~= 0 then
      return false
    end
    at = offset + length
  end
  return #segments % 5 == 0
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

-- Notes who shows each new extent, so that it is known to be needed and found again from its id.
local function reference(c, ino, chunks, replicas)
  local owners = {}
  for i = 1, #chunks, 2 do
    local segments = chunks[i + 1]
    for j = 2, #segments, 5 do
      local extent = segments[j]
      local owner = owners[extent]
      if not owner then
        owners[extent] = { ino, chunks[i], nodes = segments[j + 3] }
      elseif owner[#owner] ~= chunks[i] then
        owner[#owner + 1] = chunks[i]
      end
    end
  end
  local made = 0
  for extent, owner in pairs(owners) do
    local key, field = c:owner_key(extent)
    local nodes = owner.nodes
    owner.nodes = nil
    made = made + call('HSET', key, field, pack(owner))
    if #nodes / 2 < replicas then call('SADD', c.K .. ':thin', extent) end
  end
  if made > 0 then call('HINCRBY', c.K .. ':volume', 'extents', made) end
end

mutation('commit', {}, function(c, a)
  local inode = c:inode(a.ino)
  if not inode then return ESTALE end
  if not is(inode[MODE], S_IFREG) then return EINVAL end
  local chunk, chunks, upto, offset = inode[CHUNK], a.chunks, a['end'], 0
  if #chunks > 2 * LIMIT.chunks or #chunks % 2 ~= 0 then return E2BIG end
  for i = 1, #chunks, 2 do
    if not check_segments(chunks[i + 1], chunk) then return EINVAL end
  end
  if a.append then
    offset = inode[SIZE]
    chunks, upto = place_appended(a.append, offset, chunk)
    if #chunks > 2 * LIMIT.chunks then return E2BIG end
  end
  if upto > LIMIT.file then return EFBIG end

  local change = 0
  reference(c, a.ino, chunks, inode[REPLICAS])
  for i = 1, #chunks, 2 do
    local old = c:chunk(a.ino, chunks[i])
    change = change + c:set_chunk(a.ino, chunks[i], old, lay_over(old, chunks[i + 1]))
  end
  if change ~= 0 then call('HINCRBY', c.K .. ':volume', 'bytes', change) end
  inode[STORED] = inode[STORED] + change
  inode[SIZE] = max(inode[SIZE], upto)
  inode[VERSION] = c:next_seq()
  if not a.synced then inode[UNSYNCED] = c.s end
  if a.mtime and (a.mtime[1] > inode[MTIME] or (a.mtime[1] == inode[MTIME] and a.mtime[2] >= inode[MTIME + 1]))
      and a.mtime[1] <= c.s + 1 then -- what the writer's stat already showed, if its clock is sane
    inode[MTIME], inode[MTIME + 1] = a.mtime[1], a.mtime[2]
    if a.mtime[1] > inode[CTIME] or (a.mtime[1] == inode[CTIME] and a.mtime[2] > inode[CTIME + 1]) then
      inode[CTIME], inode[CTIME + 1] = a.mtime[1], a.mtime[2]
    end
  else
    c:touch(inode, MTIME)
    c:touch(inode, CTIME)
  end
  c:keep(a.ino)
  return c:done('commit', { a.ino }, {}, c:attributes(a.ino), offset)
end)
