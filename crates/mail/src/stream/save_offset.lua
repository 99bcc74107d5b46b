--[[ save_offset.lua: remember the last entry that became a row, unless a newer leader is at work. Atomic.
  KEYS[1] mail:stream_offsets:<stream>          STRING, id of the last entry that was dealt with
  KEYS[2] {mail:stream_offsets:<stream>}:term   STRING, highest term that wrote it
  ARGV[1] the writer's term   ARGV[2] the entry's id
  Returns 1; 0 when a newer term has written. ]]
local highest = tonumber(redis.call('GET', KEYS[2]) or '0') or 0
local term = tonumber(ARGV[1])
if term < highest then return 0 end
if term > highest then redis.call('SET', KEYS[2], ARGV[1]) end
redis.call('SET', KEYS[1], ARGV[2])
return 1
