#!lua flags=allow-oom
--[[ mend.lua: give a stuck lease a time limit, if it is still the value that was watched. Atomic.
  KEYS[1] the leader key
  ARGV[1] beginning of the value as it was seen   ARGV[2] its length
  ARGV[3] longest remaining time that is not stuck, ms   ARGV[4] the time limit to set, ms
  Returns 1 when it was set, else 0. ]]
if redis.call('TYPE', KEYS[1]).ok ~= 'string' then return 0 end
if redis.call('STRLEN', KEYS[1]) ~= tonumber(ARGV[2]) then return 0 end
if redis.call('GETRANGE', KEYS[1], 0, 2047) ~= ARGV[1] then return 0 end
local left = redis.call('PTTL', KEYS[1])
if left >= 0 and left <= tonumber(ARGV[3]) then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[4])
