--[[ limits.lua: rates and slots. Both are derived from what runs, so neither can leak. ]]

local function release_held(P, key)
  local lanes = call('SPOP', P .. 'held:' .. key, 50)
  for i = 1, #lanes do
    if call('ZREM', P .. 'held', lanes[i]) == 1 then offer(P, lanes[i]) end
  end
  if #lanes > 0 then wake(P) end
end

local function slot_release(P, key, id)
  if key == '' then return end
  if call('SREM', P .. 'slot:' .. key, id) == 1 then release_held(P, key) end
end

-- Free slots of a key. A full set is first compared with what really runs, so a slot lost in a failover heals here.
local function slots_free(P, key, limit)
  local name = P .. 'slot:' .. key
  local used = call('SCARD', name)
  if used < limit then return limit - used end
  local members = call('SRANDMEMBER', name, CHUNK)
  local running = call('HMGET', P .. 'active', unpack(members))
  for i = 1, #members do
    if not running[i] then
      call('SREM', name, members[i])
      used = used - 1
    end
  end
  return limit - used
end

local function hold(P, lane, key, at)
  call('ZREM', ring_of(P, key), lane)
  call('ZADD', P .. 'held', at, lane)
  if at == INF then call('SADD', P .. 'held:' .. limit_key(key), lane) end
end

-- Starts within the last period: how many more may start, when the next may, and the entries to append to.
local function rate_left(P, field, now, limit, period)
  local text = call('HGET', P .. 'rate', field)
  local entries, used = {}, 0
  if text then
    for t, c in string.gmatch(text, '(%d+) (%d+)') do
      t, c = tonumber(t), tonumber(c)
      if t + period > now then
        entries[#entries + 1] = { t, c }
        used = used + c
      end
    end
  end
  local opens = nil
  if used >= limit then opens = entries[1] and entries[1][1] + period or now + period end
  return limit - used, opens, entries
end

local function rate_write(P, field, entries)
  local text = {}
  for i = 1, #entries do text[i] = string.format('%.0f %.0f', entries[i][1], entries[i][2]) end
  if #text == 0 then call('HDEL', P .. 'rate', field) else call('HSET', P .. 'rate', field, table.concat(text, ' ')) end
end

-- Past 64 entries neighbours merge into the later one: a token comes back a little late, never early.
local function rate_spend(P, field, now, entries, n)
  entries[#entries + 1] = { now, n }
  if #entries > 64 then
    local merged = {}
    for i = 1, #entries - 1, 2 do
      merged[#merged + 1] = { entries[i + 1][1], entries[i][2] + entries[i + 1][2] }
    end
    if #entries % 2 == 1 then merged[#merged + 1] = entries[#entries] end
    entries = merged
  end
  rate_write(P, field, entries)
end

local function rate_refund(P, field, n)
  local text = call('HGET', P .. 'rate', field)
  if not text then return end
  local entries = {}
  for t, c in string.gmatch(text, '(%d+) (%d+)') do entries[#entries + 1] = { tonumber(t), tonumber(c) } end
  while n > 0 and #entries > 0 do
    local last = entries[#entries]
    local back = math.min(n, last[2])
    last[2] = last[2] - back
    n = n - back
    if last[2] == 0 then entries[#entries] = nil end
  end
  rate_write(P, field, entries)
end

local function parse_rate(text)
  if not text then return nil end
  local limit, period = string.match(text, '^(%d+) (%d+)$')
  return tonumber(limit), tonumber(period)
end

-- Places under the queue's own limit became free in a call that takes nothing: somebody who sleeps shall look.
local function freed(P)
  if call('HEXISTS', P .. 'cfg', 'concurrency') == 1 and call('EXISTS', P .. 'ready') == 1 then wake(P) end
end

-- Every limited lane goes back to its ring and is judged again: called when a limit changes, and by each sweep.
local function release_all_held(P)
  local lanes = call('ZRANGE', P .. 'held', 0, 999)
  for i = 1, #lanes do
    call('ZREM', P .. 'held', lanes[i])
    call('SREM', P .. 'held:' .. limit_key(key_of(lanes[i])), lanes[i])
    offer(P, lanes[i])
  end
  if #lanes > 0 then wake(P) end
  return #lanes
end
