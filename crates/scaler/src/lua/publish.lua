--[[ publish.lua: bring Kamailio's dispatcher records to what PostgreSQL says. Atomic: no reader sees a record without all
  of its fields, or an empty set between two steps.
  KEYS[1] the newest term seen here, a number     KEYS[2] the generation that Kamailio polls
  KEYS[3..2+p] records to write, hashes           KEYS[3+p..] records to remove
  ARGV[1] the caller's term   ARGV[2] p   then five values a written record: setid, destination, flags, priority, attrs
  Returns {1, written, removed}, or {0, newest term} when the caller's term is not the newest: then nothing was changed. ]]
local fields = {'setid', 'destination', 'flags', 'priority', 'attrs'}
local mine = tonumber(ARGV[1])
local newest = 0
local stored = redis.call('TYPE', KEYS[1]).ok == 'string' and redis.call('GET', KEYS[1]) or '0'
if string.match(stored, '^%d+$') and #stored <= 15 then newest = tonumber(stored) end
if newest > mine then return {0, newest} end
if newest < mine then
  redis.call('DEL', KEYS[1])
  redis.call('SET', KEYS[1], ARGV[1])
end

local function same(key, from)
  if redis.call('TYPE', key).ok ~= 'hash' or redis.call('HLEN', key) ~= #fields then return false end
  local have = redis.call('HMGET', key, unpack(fields))
  for i = 1, #fields do
    if have[i] ~= ARGV[from + i] then return false end
  end
  return true
end

local puts, written, removed = tonumber(ARGV[2]), 0, 0
for i = 1, puts do
  local key, from = KEYS[2 + i], 2 + (i - 1) * #fields
  if not same(key, from) then
    local record = {}
    for f = 1, #fields do
      record[#record + 1] = fields[f]
      record[#record + 1] = ARGV[from + f]
    end
    redis.call('DEL', key)
    redis.call('HSET', key, unpack(record))
    written = written + 1
  end
end
for i = 3 + puts, #KEYS do removed = removed + redis.call('DEL', KEYS[i]) end

-- A generation that is lost starts at the time, so that it never meets a number that Kamailio has seen before.
if redis.call('TYPE', KEYS[2]).ok ~= 'string' or not string.match(redis.call('GET', KEYS[2]), '^%d+$') then
  redis.call('DEL', KEYS[2])
  redis.call('SET', KEYS[2], redis.call('TIME')[1])
elseif written + removed > 0 then
  redis.call('INCR', KEYS[2])
end
return {1, written, removed}
