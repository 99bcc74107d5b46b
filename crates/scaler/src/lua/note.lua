--[[ note.lua: what the leader last heard of the proxies, for `status`.
  KEYS[1] the newest term seen here, a number     KEYS[2] the note
  ARGV[1] the caller's term   ARGV[2] the note, JSON   ARGV[3] its lifetime in milliseconds
  Returns 1, or 0 when the caller's term is not the newest: then nothing was changed. ]]
local stored = redis.call('TYPE', KEYS[1]).ok == 'string' and redis.call('GET', KEYS[1]) or '0'
local newest = string.match(stored, '^%d+$') and #stored <= 15 and tonumber(stored) or 0
if newest > tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return 1
