--[[ disarm.lua: moves what Kamailio cannot load out of its sight. Put before a script that needs it.
  A record without a destination ends Kamailio at its next load and keeps it from starting; one of another type, or with
  letters for a number, fails the whole load. Such a record is renamed, not deleted: somebody may want to know what it was.
  Returns the names that were moved. ]]
local function disarm(prefix, shelf)
  local moved = {}
  local pattern = string.gsub(prefix, '[%*%?%[%]\\]', '\\%0') .. '*'
  for _, key in ipairs(redis.call('KEYS', pattern)) do
    local have = redis.pcall('HMGET', key, 'destination', 'setid', 'flags', 'priority')
    local sound = not have.err and have[1] and string.match(have[1], '^[sS][iI][pP][sS]?:.') ~= nil
    for i = 2, 4 do
      if sound and have[i] and not string.match(have[i], '^%-?%d+$') then sound = false end
    end
    if not sound then
      local name = string.sub(key, #prefix + 1)
      redis.call('RENAME', key, shelf .. name)
      moved[#moved + 1] = name
    end
  end
  return moved
end
