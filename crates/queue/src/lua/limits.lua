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

local function rate_write(P, field, entries)
  local text = {}
  for i = 1, #entries do text[i] = string.format('%.0f %.0f', entries[i][1], entries[i][2]) end
  if #text == 0 then call('HDEL', P .. 'rate', field) else call('HSET', P .. 'rate', field, table.concat(text, ' ')) end
end

-- Starts within the last period: how many more may start, when the next may, and the entries to append to.
local function rate_left(P, field, now, limit, period)
  local text = call('HGET', P .. 'rate', field)
  local entries, used, ahead = {}, 0, false
  if text then
    for t, c in string.gmatch(text, '(%d+) (%d+)') do
      t, c = tonumber(t), tonumber(c)
      -- Written by a former primary whose clock was ahead: as if it began now, or the limit would hold that much longer.
      if t > now then
        t = now
        ahead = true
      end
      if t + period > now then
        entries[#entries + 1] = { t, c }
        used = used + c
      end
    end
  end
  if ahead then rate_write(P, field, entries) end
  local opens = nil
  if used >= limit then opens = entries[1] and entries[1][1] + period or now + period end
  return limit - used, opens, entries
end

-- Starts of a rate of more than 64 a period that fall into the same 64th of it share an entry, at the time of the latest: a
-- token comes back up to that much late, never early.
local function rate_spend(P, field, now, entries, n, limit, period)
  local last, share = entries[#entries], math.max(1, math.floor(period / 64))
  if last and limit > 64 and math.floor(last[1] / share) == math.floor(now / share) then
    last[1] = now
    last[2] = last[2] + n
  else
    entries[#entries + 1] = { now, n }
  end
  -- More than fit a period are left of a longer one that was set before.
  if #entries > 128 then
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

-- One step of a walk over the lanes that a limit holds back: each goes back to its ring when `all`, else where its limit
-- would let it go on. Answers the next cursor, '0' at the end. Every release is made good by this: by each change of a limit,
-- and twice a minute.
local function review_held(P, now, cursor, all)
  local cfg = call('HMGET', P .. 'cfg', 'key_concurrency', 'key_rate')
  local rate, period = parse_rate(cfg[2])
  local step = call('ZSCAN', P .. 'held', cursor, 'COUNT', 200)
  local list, has_slot, has_rate, released = step[2], {}, {}, 0
  for i = 1, #list, 2 do
    local lane = list[i]
    local key = limit_key(key_of(lane))
    local go = all
    if not go then
      if has_slot[key] == nil then
        has_slot[key] = not cfg[1] or slots_free(P, key, tonumber(cfg[1])) > 0
        has_rate[key] = not rate or rate_left(P, key, now, rate, period) > 0
      end
      go = has_slot[key] and has_rate[key]
    end
    if go then
      call('ZREM', P .. 'held', lane)
      call('SREM', P .. 'held:' .. key, lane)
      offer(P, lane)
      released = released + 1
    end
  end
  if released > 0 then wake(P) end
  return step[1]
end
