-- Replicas and where they are: found too few, too many or in the wrong place, and moved.
-- See servers/naming/background/repair.py. A row is {extent, nodes, length at least, copies wanted}, laid flat.

local SURVEYED_SEGMENTS = 2048 -- after so many a survey leaves the other maps for later

-- Whether these nodes hold what is wanted: `target` of them `settled`, none of them `leaving`.
local function is_settled(nodes, target, settled, leaving)
  local staying = 0
  for i = 1, #nodes, 2 do
    local node = nodes:sub(i, i + 1)
    if leaving[node] then return false end
    if settled[node] then staying = staying + 1 end
  end
  return staying == target
end

local function set_of_nodes(packed)
  local set = {}
  for i = 1, #packed, 2 do set[packed:sub(i, i + 1)] = true end
  return set
end

-- One look at some chunks: collects the rows of extents that are not settled.
local function new_survey(a)
  return { settled = set_of_nodes(a.settled), leaving = set_of_nodes(a.leaving), judged = {}, rows = {}, segments = 0 }
end

local function survey_chunk(survey, target, segments)
  local rows, judged, last = survey.rows, survey.judged, nil
  survey.segments = survey.segments + #segments / 5
  for i = 1, #segments, 5 do
    local extent, nodes = segments[i + 1], segments[i + 4]
    local key = nodes .. target
    if judged[key] == nil then judged[key] = is_settled(nodes, target, survey.settled, survey.leaving) end
    if not judged[key] then
      local n = #rows
      if last == extent then
        rows[n - 1] = max(rows[n - 1], segments[i + 2] + segments[i + 3])
      else
        rows[n + 1], rows[n + 2], rows[n + 3], rows[n + 4] = extent, nodes, segments[i + 2] + segments[i + 3], target
      end
      last = extent
    end
  end
end

-- survey {cursor, count, settled, leaving} -> next cursor, inodes whose maps are left for later, rows
-- Of all files, `count` keys at a time: what is there from a cursor '0' to the next is seen. Nodes are packed.
read('survey', { cursor = 'bytes', count = 'count', settled = 'bytes', leaving = 'bytes' }, function(c, a)
  local survey, later, prefix = new_survey(a), {}, c.K .. ':m:'
  local found = call('SCAN', a.cursor, 'MATCH', prefix .. '*', 'COUNT', text(a.count))
  for _, key in ipairs(found[2]) do
    local ino = tonumber(key:sub(#prefix + 1))
    if survey.segments > SURVEYED_SEGMENTS or call('HLEN', key) > LIMIT.chunks then
      later[#later + 1] = ino
    else
      local inode = c:inode(ino)
      if inode then
        for _, blob in ipairs(call('HVALS', key)) do survey_chunk(survey, inode[REPLICAS], unpack_value(blob)) end
      end
    end
  end
  return { 0, found[1], later, survey.rows }
end)

-- survey_file {ino, cursor, count, settled, leaving} -> next cursor, rows; as `survey`, of one file
read('survey_file', { ino = 'ino', cursor = 'bytes', count = 'count', settled = 'bytes', leaving = 'bytes' },
  function(c, a)
    local inode = c:inode(a.ino)
    if not inode then return { 0, '0', {} } end
    local survey = new_survey(a)
    local found = call('HSCAN', c:key('m', a.ino), a.cursor, 'COUNT', text(a.count))
    for i = 2, #found[2], 2 do survey_chunk(survey, inode[REPLICAS], unpack_value(found[2][i])) end
    return { 0, found[1], survey.rows }
  end)

-- The segments that show an extent in the first chunk that does, and its owner; or nil.
function Call:whereabouts(extent)
  if type(extent) ~= 'string' or #extent ~= 16 then return nil end
  local key, field = self:owner_key(extent)
  local blob = call('HGET', key, field)
  if not blob then return nil end
  local owner = unpack_value(blob)
  local inode = self:inode(owner[1])
  if not inode then return nil end -- its map is being let go of
  for i = 2, #owner do
    local segments = self:chunk(owner[1], owner[i])
    for j = 2, #segments, 5 do
      if segments[j] == extent then return owner, inode, segments[j + 3], segments[j + 1] + segments[j + 2] end
    end
  end
  return nil
end

-- The rows of those of the extents that a file shows.
local function rows_of(c, extents)
  local rows, seen = {}, {}
  for _, extent in ipairs(extents) do
    if not seen[extent] then
      seen[extent] = true
      local owner, inode, nodes, length = c:whereabouts(extent)
      if owner then
        local n = #rows
        rows[n + 1], rows[n + 2], rows[n + 3], rows[n + 4] = extent, nodes, length, inode[REPLICAS]
      end
    end
  end
  return rows
end

-- whereabouts {extents} -> rows
read('whereabouts', { extents = 'list' }, function(c, a)
  if not texts(a.extents) or #a.extents > LIMIT.extents then return { EINVAL } end
  return { 0, rows_of(c, a.extents) }
end)

-- thin {cursor, count} -> next cursor, rows: of extents that were stored with too few replicas
read('thin', { cursor = 'bytes', count = 'count' }, function(c, a)
  local found = call('SSCAN', c.K .. ':thin', a.cursor, 'COUNT', text(a.count))
  return { 0, found[1], rows_of(c, found[2]) }
end)

-- wounded {cursor, count} -> next cursor, extent and node of replicas reported damaged, rows of their extents
read('wounded', { cursor = 'bytes', count = 'count' }, function(c, a)
  local found = call('HSCAN', c.K .. ':damaged', a.cursor, 'COUNT', text(a.count))
  local replicas, extents = {}, {}
  for i = 1, #found[2], 2 do
    replicas[#replicas + 1] = found[2][i]
    extents[#extents + 1] = found[2][i]:sub(1, 16)
  end
  return { 0, found[1], replicas, rows_of(c, extents) }
end)

-- mended {replicas: extent and node} -> ; these are good again
internal('mended', {}, { replicas = 'list' }, function(c, a)
  if not texts(a.replicas) then return { EINVAL } end
  for _, replica in ipairs(a.replicas) do call('HDEL', c.K .. ':damaged', replica) end
  return { 0 }
end)

-- In all chunks that show the extent, its nodes are these.
local function set_nodes(c, extent, owner, nodes)
  for i = 2, #owner do
    local segments, is_there = c:chunk(owner[1], owner[i]), false
    for j = 2, #segments, 5 do
      if segments[j] == extent then segments[j + 3], is_there = nodes, true end
    end
    if is_there then call('HSET', c:key('m', owner[1]), text(owner[i]), pack(segments)) end
  end
end

-- The nodes of `one` that are not in `other`.
local function without(one, other)
  local gone, left = set_of_nodes(other), {}
  for i = 1, #one, 2 do
    local node = one:sub(i, i + 1)
    if not gone[node] then left[#left + 1] = node end
  end
  return left
end

local STALE, MOVED, GONE = 0, 1, 2

-- The extent lies on `after` instead of `before`. Where it does not lie any more it is deleted after the grace;
-- what was copied in vain, because the file is gone or the extent was moved meanwhile, too.
local function move(c, extent, before, after, grace_ms)
  local added, removed = without(after, before), without(before, after)
  local owner, inode, nodes = c:whereabouts(extent)
  local due = text(c.ms + grace_ms)
  if nodes ~= before then
    for _, node in ipairs(without(after, before .. (nodes or ''))) do
      call('ZADD', c.K .. ':dropped', due, extent .. node)
    end
    return owner and STALE or GONE
  end
  for _, node in ipairs(added) do
    if call('ZSCORE', c.K .. ':dropped', extent .. node) then return STALE end
  end
  set_nodes(c, extent, owner, after)
  c:drain_anew(set_of_nodes(table.concat(added)))
  for _, node in ipairs(added) do call('ZREM', c.K .. ':fetching', extent .. node) end
  for _, node in ipairs(removed) do
    call('ZADD', c.K .. ':dropped', due, extent .. node)
    call('HDEL', c.K .. ':damaged', extent .. node)
  end
  call(#after / 2 < inode[REPLICAS] and 'SADD' or 'SREM', c.K .. ':thin', extent)
  return MOVED
end

-- relocate {moves: extent, nodes before, nodes after, ...; grace_ms} -> for each 0 it lies elsewhere by now,
-- 1 done, 2 no file shows it any more
internal('relocate', {}, { moves = 'list', grace_ms = 'count' }, function(c, a)
  local reply = { 0 }
  if c.safe then return { EROFS } end
  if not texts(a.moves) or #a.moves % 3 ~= 0 then return { EINVAL } end
  for i = 1, #a.moves, 3 do
    if #a.moves[i] ~= 16 or #a.moves[i + 2] == 0 or #a.moves[i + 2] % 2 ~= 0 then return { EINVAL } end
  end
  for i = 1, #a.moves, 3 do
    reply[#reply + 1] = move(c, a.moves[i], a.moves[i + 1], a.moves[i + 2], a.grace_ms)
  end
  return reply
end)

-- Whether a file shows the extent with a copy on that node; and its nodes, or nil.
local function is_shown_on(c, extent, node)
  local _, _, nodes = c:whereabouts(extent)
  return nodes and set_of_nodes(nodes)[node], nodes
end

-- Those of the nodes whose copy is not said to be damaged or missing.
local function good_ones(c, extent, nodes)
  local good = ''
  for i = 1, #nodes, 2 do
    local node = nodes:sub(i, i + 1)
    if call('HEXISTS', c.K .. ':damaged', extent .. node) == 0 then good = good .. node end
  end
  return good
end

-- What was being copied, has not come into a map in time, and is not wanted there.
local function drop_what_came_in_vain(c, count)
  local key = c.K .. ':fetching'
  for _, replica in ipairs(call('ZRANGEBYSCORE', key, '-inf', text(c.ms), 'LIMIT', 0, text(count))) do
    if not is_shown_on(c, replica:sub(1, 16), replica:sub(17)) then
      call('ZADD', c.K .. ':dropped', 'NX', text(c.ms), replica)
    end
    call('ZREM', key, replica)
  end
end

-- dropped {count} -> extent and node, on how many others a file shows it, those of them whose copy is not known to be
-- bad, ...: whose grace is over. One that a file says to be there after all is not listed, and forgotten.
internal('dropped', {}, { count = 'count' }, function(c, a)
  local reply, key = { 0 }, c.K .. ':dropped'
  if c.safe then return reply end
  drop_what_came_in_vain(c, a.count)
  for _, replica in ipairs(call('ZRANGEBYSCORE', key, '-inf', text(c.ms), 'LIMIT', 0, text(a.count))) do
    local is_shown, nodes = is_shown_on(c, replica:sub(1, 16), replica:sub(17))
    if is_shown then
      call('ZREM', key, replica)
    else
      local n, others = #reply, nodes or ''
      reply[n + 1], reply[n + 2], reply[n + 3] = replica, #others / 2, good_ones(c, replica:sub(1, 16), others)
    end
  end
  return reply
end)

-- The row of an extent that lies on the node though the file that shows it does not look for it there: stored when its
-- writer had given that node up. Not what is being copied there, is to be deleted already, or lacks a good copy: also
-- where the map names fewer than are asked for, because no other node has room for one, it may be of use.
local function stray(c, extent, node)
  local replica, owner, inode, nodes, length = struct.pack('>I2', node), c:whereabouts(extent)
  if not nodes or set_of_nodes(nodes)[replica] or #good_ones(c, extent, nodes) < #nodes then return nil end
  if #nodes / 2 < inode[REPLICAS] then return nil end
  for _, key in ipairs({ ':fetching', ':dropped' }) do
    if call('ZSCORE', c.K .. key, extent .. replica) then return nil end
  end
  for i = 1, #nodes, 2 do
    if call('HEXISTS', c.K .. ':doubted', text(struct.unpack('>I2', nodes, i))) == 1 then return nil end
  end
  return { extent, nodes, length, inode[REPLICAS] }
end

-- strays {node, extents} -> rows of those of the extents, which lie on the node, that no map looks for there
read('strays', { node = 'id', extents = 'list' }, function(c, a)
  if #a.extents > LIMIT.extents or not texts(a.extents) then return { EINVAL } end
  local rows = {}
  for _, extent in ipairs(c:may_delete() and a.extents or {}) do
    for _, value in ipairs(stray(c, extent, a.node) or {}) do rows[#rows + 1] = value end
  end
  return { 0, rows }
end)

-- drop_strays {node, extents, grace_ms} -> ; those that are strays still are deleted after the grace
internal('drop_strays', {}, { node = 'id', extents = 'list', grace_ms = 'count' }, function(c, a)
  if #a.extents > LIMIT.extents or not texts(a.extents) then return { EINVAL } end
  for _, extent in ipairs(c:may_delete() and a.extents or {}) do
    if stray(c, extent, a.node) then
      call('ZADD', c.K .. ':dropped', text(c.ms + a.grace_ms), extent .. struct.pack('>I2', a.node))
    end
  end
  return { 0 }
end)

-- dropped_done {gone, left: extent and node; retry_ms}
internal('dropped_done', {}, { gone = 'list', left = 'list', retry_ms = 'count' }, function(c, a)
  if not texts(a.gone) or not texts(a.left) then return { EINVAL } end
  for _, replica in ipairs(a.gone) do call('ZREM', c.K .. ':dropped', replica) end
  for _, replica in ipairs(a.left) do
    call('ZADD', c.K .. ':dropped', 'XX', text(c.ms + a.retry_ms), replica)
  end
  return { 0 }
end)

-- fetching {replicas: extent and node; within_ms} -> ; these are being copied there, and not to be deleted any more
-- What no map names by then was copied in vain: it is dropped. What one names already is replaced there.
internal('fetching', {}, { replicas = 'list', within_ms = 'count' }, function(c, a)
  if not texts(a.replicas) then return { EINVAL } end
  for _, replica in ipairs(a.replicas) do
    call('ZREM', c.K .. ':dropped', replica)
    if not is_shown_on(c, replica:sub(1, 16), replica:sub(17)) then
      call('ZADD', c.K .. ':fetching', text(c.ms + a.within_ms), replica)
    end
  end
  return { 0 }
end)

-- recount {count} -> inode, since which change, ...: files that another number of copies is asked for
read('recount', { count = 'count' }, function(c, a)
  local reply, inos = { 0 }, call('HRANDFIELD', c.K .. ':recount', text(a.count), 'WITHVALUES')
  for i = 1, #inos, 2 do
    reply[#reply + 1] = tonumber(inos[i])
    reply[#reply + 1] = tonumber(inos[i + 1])
  end
  return reply
end)

-- recount_file {ino, cursor, count, change} -> next cursor, rows of all extents: of their nodes some may be dead
-- A part of the file's extents is thin, or not, by what is asked for now. With the last part it is recounted,
-- unless it was changed again.
internal('recount_file', {}, { ino = 'ino', cursor = 'bytes', count = 'count', change = 'count' }, function(c, a)
  local inode, waiting, rows = c:inode(a.ino), c.K .. ':recount', {}
  if not inode then
    call('HDEL', waiting, text(a.ino))
    return { 0, '0', rows }
  end
  local found, target = call('HSCAN', c:key('m', a.ino), a.cursor, 'COUNT', text(a.count)), inode[REPLICAS]
  for i = 2, #found[2], 2 do
    local segments = unpack_value(found[2][i])
    for j = 2, #segments, 5 do
      local extent, nodes = segments[j], segments[j + 3]
      call(#nodes / 2 < target and 'SADD' or 'SREM', c.K .. ':thin', extent)
      local n = #rows
      rows[n + 1], rows[n + 2], rows[n + 3], rows[n + 4] = extent, nodes, segments[j + 1] + segments[j + 2], target
    end
  end
  if found[1] == '0' and tonumber(call('HGET', waiting, text(a.ino)) or -1) == a.change then
    call('HDEL', waiting, text(a.ino))
  end
  return { 0, found[1], rows }
end)

-- note_survey {found} -> ; what the leader knows of the replicas, packed, for every naming server to tell
internal('note_survey', {}, { found = 'bytes' }, function(c, a)
  call('SET', c.K .. ':survey', a.found)
  return { 0 }
end)
