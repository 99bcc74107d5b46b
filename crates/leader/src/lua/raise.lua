#!lua flags=allow-oom
--[[ raise.lua: raise a copy of the term; never lower it. Atomic.
  KEYS[1] the copy   ARGV[1] the term
  Returns the copy's value afterwards. One that is no number, or another type, is replaced. ]]
if redis.call('TYPE', KEYS[1]).ok == 'string' then
  local copy = redis.call('GETRANGE', KEYS[1], 0, 63)
  if string.match(copy, '^%d+$') and #copy <= 15 and tonumber(copy) >= tonumber(ARGV[1]) then return copy end
end
redis.call('SET', KEYS[1], ARGV[1])
return ARGV[1]
