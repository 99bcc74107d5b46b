--[[ workers.lua: leases of worker processes, and the return of what a dead one held. ]]

--[[ join: ARGV incarnation, lease ms, info JSON, the queue's configured rate ('<n> <period ms>' or '').
  Returns Redis time, ms. ]]
register('join', { 'allow-oom' }, function(keys, args)
  local P, now = keys[1], now_ms()
  call('HSETNX', P .. 'active', '', PADDING)
  call('ZADD', P .. 'workers', now + tonumber(args[2]), args[1])
  call('HSET', P .. 'info', args[1], args[3])
  if args[4] and args[4] ~= '' then
    call('HSET', P .. 'cfg', 'base_rate', args[4])
  else
    call('HDEL', P .. 'cfg', 'base_rate')
  end
  return now
end)

local function bury(P, now, inc, how)
  call('ZREM', P .. 'workers', inc)
  call('HDEL', P .. 'info', inc)
  local suspect = call('HGET', P .. 'blame', inc) or '-'
  call('HDEL', P .. 'blame', inc)
  call('HSET', P .. 'gone', inc, string.format('%.0f %s %s', now, how, suspect))
  call('HSET', P .. 'pulse', 'sweep_at', 0)
end

--[[ leave: a worker lets an incarnation go by itself; whatever it still holds goes back unblamed.
  ARGV incarnation. Returns 1 when it was known. ]]
register('leave', { 'allow-oom' }, function(keys, args)
  local P = keys[1]
  if not call('ZSCORE', P .. 'workers', args[1]) then return 0 end
  bury(P, now_ms(), args[1], 'clean')
  return 1
end)

--[[ beat: renews leases and tells what needs doing. ARGV lease ms, sweep interval ms, incarnations ...
  A silence of all workers for half a lease means that Redis was away, or everybody was: leases that ended in it are
  honoured for another half, so that a restart of Redis does not read as the death of every worker. A time that lies
  further ahead than it was ever set comes from a former primary's clock, and counts as now.
  Returns {now, 1 = this caller sweeps now, 2 = and tends, cancelled running ids, 1 = work is ready, 1 = jobs without handler are
  parked, worker concurrency or -1, 1 = paused, incarnations that are not known any more ...}. ]]
register('beat', { 'allow-oom' }, function(keys, args)
  local P, now = keys[1], now_ms()
  local lease = tonumber(args[1])
  local pulse = call('HMGET', P .. 'pulse', 'beat', 'sweep_at', 'tend_at')
  local interval = tonumber(args[2])
  local silent = not pulse[1] or math.abs(now - tonumber(pulse[1])) > lease / 2
  local function is_due(at, every) return now >= at or at > now + every end
  call('HSET', P .. 'pulse', 'beat', string.format('%.0f', now))
  if silent then call('HSET', P .. 'pulse', 'grace', string.format('%.0f', now + lease / 2)) end
  local lost = {}
  for i = 3, #args do
    if call('ZSCORE', P .. 'workers', args[i]) then
      call('ZADD', P .. 'workers', now + lease, args[i])
    else
      lost[#lost + 1] = args[i]
    end
  end
  local ended = call('ZRANGEBYSCORE', P .. 'workers', '-inf', now, 'LIMIT', 0, 1)
  local sweep = 0
  if #ended > 0 or is_due(tonumber(pulse[2] or 0), interval) then
    sweep = 1
    call('HSET', P .. 'pulse', 'sweep_at', string.format('%.0f', now + interval))
    -- Two marks of the completed count, a sweep apart, give the queue's rate.
    local mark = call('HGET', P .. 'pulse', 'mark')
    local last = mark and tonumber(string.match(mark, '^%d+')) or 0
    if math.abs(now - last) >= 1000 then
      call('HSET', P .. 'pulse', 'mark', string.format('%.0f %s', now, call('HGET', P .. 'n', 'completed') or '0'),
        'mark_before', mark or '')
    end
  end
  if is_due(tonumber(pulse[3] or 0), 6 * interval) then
    sweep = 2
    call('HSET', P .. 'pulse', 'tend_at', string.format('%.0f', now + 6 * interval))
  end
  local cfg = call('HMGET', P .. 'cfg', 'worker_concurrency', 'paused')
  return {
    now, sweep, call('EXISTS', P .. 'cancel') == 1 and call('HKEYS', P .. 'cancel') or {},
    call('EXISTS', P .. 'ready', P .. 'suspect') > 0 and 1 or 0, call('EXISTS', P .. 'nohandler'),
    tonumber(cfg[1] or -1), cfg[2] and 1 or 0, lost,
  }
end)

-- A job whose worker is no more. `fate` is that worker's line in `gone`, or nil when nobody remembers it.
local function orphan(P, now, id, value, fate, poison)
  local lane = string.match(value, '\n(.*)$') or ''
  local token = string.match(value, '^[^\n]*')
  local envelope = call('HGET', P .. 'jobs', id)
  leave_active(P, id, token, lane)
  if not envelope or envelope == '' then
    call('HDEL', P .. 'jobs', id)
    forget_past(P, { id })
    count(P, 'removed', 1)
    return 'removed'
  end
  local asked = call('HGET', P .. 'cancel', id)
  if asked then
    verbs.cancelled(P, now, id, envelope, '')
    return 'cancelled'
  end
  if lane == '' then lane = lane_of(envelope) end
  local how, suspect = 'clean', '-'
  if fate then how, suspect = string.match(fate, '^%d+ (%a+) (.*)$') end
  if how == 'clean' then
    enqueue_head(P, lane, id)
    return 'returned'
  end
  if suspect == id or suspect == '-' then
    local crashes = call('HINCRBY', P .. 'crashes', id, 1)
    if crashes >= poison then
      local record = call('HGET', P .. 'fail', id) or '0 - 0 0\n'
      local attempts, replays = string.match(record, '^(%d+) %S+ %d+ (%d+)')
      park(P, now, id, envelope, 'poison', string.format('%s poison %.0f %s\nits worker died %d times while running it',
        attempts or '0', now, replays or '0', crashes))
      note_end(P, now, id, envelope, 'dead:poison', string.format('its worker died %d times while running it', crashes))
      call('HDEL', P .. 'progress', id)
      return 'poison'
    end
  end
  enqueue_head(P, suspect_lane(lane), id)
  return 'returned'
end

--[[ disown: one step of a walk over `active`; what lies there under these tokens goes back, unblamed. For lots whose answer was
  lost, of a worker that lives on. ARGV cursor ('0' starts), records a step, tokens ... Returns {next cursor, returned}. ]]
register('disown', { 'allow-oom' }, function(keys, args)
  local P, now, lost, returned = keys[1], now_ms(), {}, 0
  for i = 3, #args do lost[args[i]] = true end
  local step = call('HSCAN', P .. 'active', args[1], 'COUNT', args[2])
  local list = step[2]
  for i = 1, #list, 2 do
    local token = string.match(list[i + 1], '^[^\n]*')
    if lost[token] then
      give_back(P, list[i], token, string.match(list[i + 1], '\n(.*)$') or '', now)
      returned = returned + 1
    end
  end
  if returned > 0 then wake(P) end
  return { step[1], returned }
end)

--[[ sweep: one step of the walk over `active`, which is the truth about what runs; no second index is trusted.
  ARGV cursor ('0' starts), records a step, crashes that make a job poison, lease ms or absent.
  Returns {next cursor ('0' = done), returned, cancelled ids (id, envelope, ...), poison ids (id, envelope, ...), numbers of
  the ends that this brought}. ]]
register('sweep', { 'allow-oom' }, function(keys, args)
  local P, now = keys[1], now_ms()
  if args[1] == '0' then
    if args[4] then
      -- Leases written by a former primary whose clock was ahead: their workers, if they live, renew them well before.
      local latest = now + tonumber(args[4])
      local ahead = call('ZRANGEBYSCORE', P .. 'workers', '(' .. string.format('%.0f', latest), '+inf', 'LIMIT', 0, 500)
      for i = 1, #ahead do call('ZADD', P .. 'workers', latest, ahead[i]) end
    end
    local grace = tonumber(call('HGET', P .. 'pulse', 'grace') or 0)
    if now >= grace then
      local ended = call('ZRANGEBYSCORE', P .. 'workers', '-inf', now, 'LIMIT', 0, 500)
      for i = 1, #ended do bury(P, now, ended[i], 'crash') end
    end
  end
  local step = call('HSCAN', P .. 'active', args[1], 'COUNT', args[2])
  local list, alive, fates = step[2], {}, {}
  local tally = { returned = 0, cancelled = 0, removed = 0, poison = 0 }
  local poisoned, dropped = {}, {}
  for i = 1, #list, 2 do
    local id, value = list[i], list[i + 1]
    if id ~= '' then
      local inc = string.match(value, '^[^.\n]*')
      if alive[inc] == nil then
        alive[inc] = call('ZSCORE', P .. 'workers', inc) and true or false
        if not alive[inc] then fates[inc] = call('HGET', P .. 'gone', inc) end
      end
      if not alive[inc] then
        local envelope = call('HGET', P .. 'jobs', id)
        local end_of_it = orphan(P, now, id, value, fates[inc], tonumber(args[3]))
        tally[end_of_it] = tally[end_of_it] + 1
        if end_of_it == 'poison' then
          poisoned[#poisoned + 1] = id
          poisoned[#poisoned + 1] = envelope
        elseif end_of_it == 'cancelled' then
          dropped[#dropped + 1] = id
          dropped[#dropped + 1] = envelope
        end
      end
    end
  end
  if tally.returned > 0 then wake(P) end
  count(P, 'orphans', tally.returned + tally.poison + tally.cancelled)
  return { step[1], tally.returned, dropped, poisoned, noted }
end)

-- Removes fields of a hash whose value says that they are over. Bounded: 200 fields a call, a moving cursor. With `on`
-- only a walk that is under way goes on. Answers whether it is not at its end.
local function prune(P, on, name, over)
  local cursor = call('HGET', P .. 'pulse', 'cursor:' .. name) or '0'
  if on and cursor == '0' then return false end
  local step = call('HSCAN', P .. name, cursor, 'COUNT', 200)
  local list = step[2]
  for i = 1, #list, 2 do
    if over(list[i], list[i + 1]) then call('HDEL', P .. name, list[i]) end
  end
  call('HSET', P .. 'pulse', 'cursor:' .. name, step[1])
  return step[1] ~= '0'
end

--[[ tend: retention and small repairs, bounded per call. ARGV: keep completed ms, count; keep dead ms, count (0 = no bound);
  1 = goes on with what an earlier call left. Settings stored by `set` win over the arguments.
  Dead jobs stay while the history does not keep up.
  Returns {1 = more is left: call again, numbers of the ends that this brought}. ]]
register('tend', { 'allow-oom' }, function(keys, args)
  local P, now = keys[1], now_ms()
  local cfg = call('HMGET', P .. 'cfg', 'keep_completed_ms', 'keep_completed', 'keep_dead_ms', 'keep_dead')
  local function bound(i) return tonumber(cfg[i] or args[i] or 0) end
  local on, more = args[5] == '1', false

  local over = call('ZRANGEBYSCORE', P .. 'finished', '-inf', now, 'LIMIT', 0, 500)
  if #over > 0 then
    call('ZREM', P .. 'finished', unpack(over))
    call('HDEL', P .. 'jobs', unpack(over))
    more = #over == 500
  end

  local function drop_results(ids)
    if #ids == 0 then return end
    more = more or #ids == 500
    call('ZREM', P .. 'results', unpack(ids))
    call('HDEL', P .. 'result', unpack(ids))
  end
  if bound(1) > 0 then
    drop_results(call('ZRANGEBYSCORE', P .. 'results', '-inf', now - bound(1), 'LIMIT', 0, 500))
  end
  if bound(2) > 0 then
    local excess = math.min(500, call('ZCARD', P .. 'results') - bound(2))
    if excess > 0 then drop_results(call('ZRANGE', P .. 'results', 0, excess - 1)) end
  end

  local may_remove = call('HLEN', P .. 'ends') < ENDS_WAIT
  local function drop_dead(ids)
    for i = 1, #ids do
      local id = ids[i]
      local envelope = call('HGET', P .. 'jobs', id) or ''
      note_end(P, now, id, envelope, 'removed', 'retention')
      call('ZREM', P .. 'dead', id)
      call('HDEL', P .. 'jobs', id)
      call('HDEL', P .. 'nohandler', id)
      forget_past(P, { id })
      conclude(P, now, id, envelope, 'gone', nil)
    end
    more = more or #ids == 200
    count(P, 'removed', #ids)
  end
  if may_remove and bound(3) > 0 then drop_dead(call('ZRANGEBYSCORE', P .. 'dead', '-inf', now - bound(3), 'LIMIT', 0, 200)) end
  if may_remove and bound(4) > 0 then
    local excess = math.min(200, call('ZCARD', P .. 'dead') - bound(4))
    if excess > 0 then drop_dead(call('ZRANGE', P .. 'dead', 0, excess - 1)) end
  end

  local function tidy(name, over) more = prune(P, on, name, over) or more end
  tidy('gone', function(_, v) return tonumber(string.match(v, '^%d+')) + 600000 < now end)
  tidy('producers', function(_, v) return tonumber(string.match(v, ' (%d+)$')) + 3600000 < now end)
  tidy('blame', function(inc) return not call('ZSCORE', P .. 'workers', inc) end)
  tidy('info', function(inc) return not call('ZSCORE', P .. 'workers', inc) end)
  tidy('nohandler', function(id) return not call('ZSCORE', P .. 'dead', id) end)
  tidy('cancel', function(id) return call('HEXISTS', P .. 'active', id) == 0 end)
  tidy('unique', function(key, v)
    local id, at = string.match(v, '^(%S+) (%d+)$')
    if string.sub(key, -1) == '\n' then return not call('ZSCORE', P .. 'delayed', id) end
    if tonumber(at) > 0 then return tonumber(at) < now end
    return not is_live(P, id)
  end)
  tidy('rate', function(_, v)
    local last = 0
    for t in string.gmatch(v, '(%d+) %d+') do last = tonumber(t) end
    return last + DAY < now
  end)
  local held = call('HGET', P .. 'pulse', 'cursor:held') or '0'
  if not (on and held == '0') then
    held = review_held(P, now, held, false)
    call('HSET', P .. 'pulse', 'cursor:held', held)
    more = more or held ~= '0'
  end
  return { more and 1 or 0, noted }
end)
