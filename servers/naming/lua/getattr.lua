-- getattr {ino} -> attributes
read('getattr', { ino = 'ino' }, function(c, a)
  local blob = call('GET', c:key('i', a.ino))
  if not blob and c:is_trash(a.ino) then blob = c:trash_directory() end
  if not blob then return { ESTALE } end
  return { 0, blob }
end)
