--[[ publish.lua: bring Kamailio's dispatcher records to what PostgreSQL says. Atomic: no reader sees a record without all
  of its fields, or an empty set between two steps. What Kamailio could not load is moved away before it is told of a change
  (disarm.lua stands before this).
  KEYS[1] the newest term seen here, a number     KEYS[2] the generation that Kamailio polls
  KEYS[3..2+p] records to write, hashes           KEYS[3+p..] records to remove
  ARGV[1] the caller's term   ARGV[2] p   ARGV[3] `whole` when these are all records of ours, else `part`
  ARGV[4] beginning of the records' keys   ARGV[5] beginning of the keys to move to
  ARGV[6] the highest generation that the caller has made, 0 for none
  then five values a written record: setid, destination, flags, priority, attrs
  Returns {1, written, removed, generation, names moved}; {0, newest term, 0, 0, {}} when the caller's term is not the newest;
  {2, 0, 0, 0, {}} when a part was given and the generation is lost, so that the others may be lost as well. In the last two
  cases nothing was changed. ]]
local fields = {'setid', 'destination', 'flags', 'priority', 'attrs'}
local mine = tonumber(ARGV[1])
local newest = 0
local stored = redis.call('TYPE', KEYS[1]).ok == 'string' and redis.call('GET', KEYS[1]) or '0'
if string.match(stored, '^%d+$') and #stored <= 15 then newest = tonumber(stored) end
if newest > mine then return {0, newest, 0, 0, {}} end
if newest < mine then
  redis.call('DEL', KEYS[1])
  redis.call('SET', KEYS[1], ARGV[1])
end

local lost = redis.call('TYPE', KEYS[2]).ok ~= 'string' or not string.match(redis.call('GET', KEYS[2]), '^%d+$')
if lost and ARGV[3] ~= 'whole' then return {2, 0, 0, 0, {}} end

local place = {}
for i = 1, #fields do place[fields[i]] = i end
local function same(key, from)
  local have = redis.pcall('HGETALL', key)
  if have.err or #have ~= 2 * #fields then return false end
  for i = 1, #have, 2 do
    local at = place[have[i]]
    if not at or have[i + 1] ~= ARGV[from + at] then return false end
  end
  return true
end

local puts, written, removed = tonumber(ARGV[2]), 0, 0
for i = 1, puts do
  local key, from = KEYS[2 + i], 6 + (i - 1) * #fields
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

if not lost and written + removed == 0 then
  return {1, 0, 0, tonumber(redis.call('GET', KEYS[2])), {}}
end
local moved = disarm(ARGV[4], ARGV[5])

-- It only rises, also when Redis came back empty or with an old snapshot: Kamailio never meets a number that stood for other
-- records, nor waits for one that it has seen. The caller knows its own numbers; before its first one the time, in seconds, is
-- higher than any that was counted from an earlier time.
local generation = lost and 0 or tonumber(redis.call('GET', KEYS[2]))
local floor = tonumber(ARGV[6])
if floor == 0 then floor = tonumber(redis.call('TIME')[1]) end
generation = math.max(generation, floor) + 1
redis.call('DEL', KEYS[2])
redis.call('SET', KEYS[2], string.format('%d', generation))
return {1, written, removed, generation, moved}
