--[[ snapshot.lua: what Kamailio would load now, after what it cannot load was moved away (disarm.lua stands before this).
  KEYS[1] the newest term seen here, a number     KEYS[2] the generation that Kamailio polls
  ARGV[1] the caller's term   ARGV[2] beginning of the records' keys   ARGV[3] beginning of the keys to move to
  ARGV[4] `records` to get them
  Returns {1, generation, names moved, five values a record: name, setid, destination, flags, attrs}; {0, newest term, {}, {}}
  when the caller's term is not the newest: then nothing was moved. A generation that is lost is 0. ]]
local stored = redis.call('TYPE', KEYS[1]).ok == 'string' and redis.call('GET', KEYS[1]) or '0'
local newest = string.match(stored, '^%d+$') and #stored <= 15 and tonumber(stored) or 0
if newest > tonumber(ARGV[1]) then return {0, newest, {}, {}} end

local generation = 0
if redis.call('TYPE', KEYS[2]).ok == 'string' then generation = tonumber(redis.call('GET', KEYS[2])) or 0 end
local moved, records = disarm(ARGV[2], ARGV[3]), {}
if ARGV[4] == 'records' then
  local pattern = string.gsub(ARGV[2], '[%*%?%[%]\\]', '\\%0') .. '*'
  for _, key in ipairs(redis.call('KEYS', pattern)) do
    local have = redis.call('HMGET', key, 'setid', 'destination', 'flags', 'attrs')
    records[#records + 1] = string.sub(key, #ARGV[2] + 1)
    for i = 1, 4 do records[#records + 1] = have[i] or '' end
  end
end
return {1, generation, moved, records}
