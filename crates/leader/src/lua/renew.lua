#!lua flags=allow-oom
--[[ renew.lua: lengthen the lease if it is this process's. Never makes one. Atomic.
  KEYS[1] the leader key   ARGV[1] nonce of this process   ARGV[2] lease length, ms
  Returns {'ok'}; {'none'}; {'string', beginning of the value, its length, PTTL}; or {<other type>}. ]]
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'string' then return {kind} end
local value = redis.call('GETRANGE', KEYS[1], 0, 2047)
local read, record = pcall(cjson.decode, value)
if read and type(record) == 'table' and record.nonce == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return {'ok'}
end
return {'string', value, redis.call('STRLEN', KEYS[1]), redis.call('PTTL', KEYS[1])}
