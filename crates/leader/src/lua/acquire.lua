#!lua flags=allow-oom
--[[ acquire.lua: take the lease if it is free or already this process's. Atomic.
  KEYS[1] the leader key
  ARGV[1] nonce of this process   ARGV[2] the record, JSON   ARGV[3] lease length, ms
  Returns {'taken'}; or {'string', beginning of the value, its length, PTTL}; or {<other type>}.
  allow-oom: a fleet must get its next leader while memory is short; the record is a few hundred bytes. ]]
if redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3], 'NX') then return {'taken'} end
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'string' then return {kind} end
local length = redis.call('STRLEN', KEYS[1])
local value = redis.call('GETRANGE', KEYS[1], 0, 2047)
local read, record = pcall(cjson.decode, value)
if read and type(record) == 'table' and record.nonce == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  return {'taken'}
end
return {'string', value, length, redis.call('PTTL', KEYS[1])}
