#!lua flags=allow-oom
--[[ release.lua: remove the lease if it is this process's. Atomic.
  KEYS[1] the leader key   ARGV[1] nonce of this process
  Returns 1 when it was removed, else 0. ]]
if redis.call('TYPE', KEYS[1]).ok ~= 'string' then return 0 end
local read, record = pcall(cjson.decode, redis.call('GETRANGE', KEYS[1], 0, 2047))
if read and type(record) == 'table' and record.nonce == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
