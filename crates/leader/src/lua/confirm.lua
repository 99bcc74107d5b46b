#!lua flags=allow-oom
--[[ confirm.lua: write the issued term into this process's own lease and into the copy beside it. Atomic.
  KEYS[1] the leader key   KEYS[2] the copy of the term, in the same slot
  ARGV[1] nonce of this process   ARGV[2] the record, JSON   ARGV[3] lease length, ms   ARGV[4] the term
  Returns {'ok', what the copy was or ''}; {'behind', copy} when the copy is already higher, and nothing was written;
  or, when the lease is not this process's: {'none'}, {'string', beginning of the value, its length, PTTL}, {<other type>}.
  A copy that is no number is replaced: PostgreSQL, not the copy, is where terms come from. ]]
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'string' then return {kind} end
local value = redis.call('GETRANGE', KEYS[1], 0, 2047)
local read, record = pcall(cjson.decode, value)
if not (read and type(record) == 'table' and record.nonce == ARGV[1]) then
  return {'string', value, redis.call('STRLEN', KEYS[1]), redis.call('PTTL', KEYS[1])}
end
local copy = ''
if redis.call('TYPE', KEYS[2]).ok == 'string' then copy = redis.call('GETRANGE', KEYS[2], 0, 63) end
if string.match(copy, '^%d+$') and #copy <= 15 and tonumber(copy) > tonumber(ARGV[4]) then
  return {'behind', copy}
end
redis.call('SET', KEYS[2], ARGV[4])
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return {'ok', copy}
