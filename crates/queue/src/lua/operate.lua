--[[ operate.lua: what operators and the client ask for: look, cancel, replay, discard, settings. ]]

--[[ cancel: ARGV reason, ids ... Per id: {'cancelled', number of its end}, {'asked'} (it runs: its worker is told),
  {'dead'} or {'absent'}. ]]
register('cancel', { 'allow-oom' }, function(keys, args)
  local P, now, reply = keys[1], now_ms(), {}
  for i = 2, #args do
    local id = args[i]
    local envelope = envelope_of(P, id)
    if not envelope or envelope == '' then
      reply[#reply + 1] = { 'absent' }
    elseif call('HEXISTS', P .. 'active', id) == 1 then
      call('HSET', P .. 'cancel', id, args[1])
      wake(P)
      reply[#reply + 1] = { 'asked' }
    elseif call('ZSCORE', P .. 'dead', id) then
      reply[#reply + 1] = { 'dead' }
    else
      if call('ZREM', P .. 'delayed', id) == 1 then
        drop_envelope(P, id)
      else
        -- Its place in the lane is found when the lane gets there; looking for it now would scan the lane.
        call('HSET', P .. 'jobs', id, '')
        call('SADD', P .. 'ghosts', id)
      end
      note_end(P, now, id, envelope, 'cancelled', args[1])
      local number = noted[#noted]
      forget_past(P, { id })
      conclude(P, now, id, envelope, 'gone', nil)
      count(P, 'cancelled', 1)
      reply[#reply + 1] = { 'cancelled', number }
    end
  end
  return reply
end)

-- A dead job back to waiting. Answers nil, or the id that holds its unique key.
local function revive(P, now, id, envelope, fresh)
  local _, _, meta = header(envelope)
  local u = attr(meta, 'u')
  if u then
    local mode, key = string.match(u, '^(%a)%d*:(.*)$')
    if mode ~= 't' then
      local held = call('HGET', P .. 'unique', key)
      local holder = held and string.match(held, '^%S+')
      if holder and holder ~= id and is_live(P, holder) then return holder end
      call('HSET', P .. 'unique', key, id .. ' 0')
    end
  end
  call('ZREM', P .. 'dead', id)
  call('HDEL', P .. 'nohandler', id)
  local record = call('HGET', P .. 'fail', id)
  if record and fresh then
    local at, replays, text = string.match(record, '^%d+ %S+ (%d+) (%d+)(.*)$')
    if at then call('HSET', P .. 'fail', id, string.format('0 - %s %d%s', at, tonumber(replays) + 1, text)) end
  elseif record then
    call('HSET', P .. 'fail', id, (string.gsub(record, '^(%d+) %S+', '%1 -', 1)))
  end
  local children = tonumber(call('HGET', P .. 'children', id) or 0)
  if children > 0 then
    call('ZADD', P .. 'delayed', INF, id)
  else
    local lane = lane_of(envelope)
    -- Its count of crashes is kept, so the place of those that lost a worker is too.
    if call('HEXISTS', P .. 'crashes', id) == 1 then lane = suspect_lane(lane) end
    enqueue_tail(P, lane, id)
    wake(P)
  end
  return nil
end

--[[ replay: dead jobs back to waiting, attempts anew, lineage and crash count kept. ARGV ids ...
  Per id: {'replayed'}, {'unique', holder}, {'not_dead'}. ]]
register('replay', {}, function(keys, args)
  local P, now, reply, done = keys[1], now_ms(), {}, 0
  for i = 1, #args do
    local id = args[i]
    local envelope = call('HGET', P .. 'jobs', id)
    if not envelope or envelope == '' or not call('ZSCORE', P .. 'dead', id) then
      reply[#reply + 1] = { 'not_dead' }
    else
      local holder = revive(P, now, id, envelope, true)
      if holder then
        reply[#reply + 1] = { 'unique', holder }
      else
        done = done + 1
        reply[#reply + 1] = { 'replayed' }
      end
    end
  end
  count(P, 'replayed', done)
  return reply
end)

--[[ reclaim: a worker takes back jobs parked as no_handler whose kind it knows. ARGV cursor, kinds ...
  Returns {next cursor, how many}. ]]
register('reclaim', { 'allow-oom' }, function(keys, args)
  local P, now, known, done = keys[1], now_ms(), {}, 0
  for i = 2, #args do known[args[i]] = true end
  local step = call('HSCAN', P .. 'nohandler', args[1], 'COUNT', 200)
  local list = step[2]
  for i = 1, #list, 2 do
    if known[list[i + 1]] then
      local envelope = call('HGET', P .. 'jobs', list[i])
      if not envelope or envelope == '' or not call('ZSCORE', P .. 'dead', list[i]) then
        call('HDEL', P .. 'nohandler', list[i])
      elseif not revive(P, now, list[i], envelope, false) then
        done = done + 1
      end
    end
  end
  count(P, 'reclaimed', done)
  return { step[1], done }
end)

local function born_of(envelope)
  local _, _, meta = header(envelope)
  return tonumber(string.match(meta or '', '^%w+') or '0', 36) or 0
end

-- Lanes that one call of `pick` looks at: a queue may have one for each of a great many tenants.
local PICK_LANES = 1000

-- Up to n jobs that wait, from the heads of their lanes, beginning with the lane after the first `skip`. Cancelled ids at a
-- head are cleared away on the way. Answers how many lanes were looked at in vain when nothing was found and more follow.
local function pick_waiting(P, n, before, skip, reply)
  local looked = 0
  for _, ring in ipairs({ 'ready', 'held', 'suspect' }) do
    local size = call('ZCARD', P .. ring)
    local lanes = skip < size and call('ZRANGE', P .. ring, skip, skip + PICK_LANES - looked - 1) or {}
    skip = math.max(0, skip - size)
    for l = 1, #lanes do
      looked = looked + 1
      local list = P .. 'lane:' .. lanes[l]
      local id = call('LINDEX', list, -1)
      while id and (call('HGET', P .. 'jobs', id) or '') == '' do
        call('RPOP', list)
        call('SREM', P .. 'ghosts', id)
        call('HDEL', P .. 'jobs', id)
        id = call('LINDEX', list, -1)
      end
      if not id then call('ZREM', P .. ring, lanes[l]) end
      local ids = id and call('LRANGE', list, -(n - #reply / 2), -1) or {}
      for k = #ids, 1, -1 do
        local envelope = call('HGET', P .. 'jobs', ids[k]) or ''
        if envelope ~= '' then
          if before > 0 and born_of(envelope) >= before then break end
          reply[#reply + 1] = ids[k]
          reply[#reply + 1] = envelope
        end
      end
      if #reply >= 2 * n then return 0 end
    end
    if looked >= PICK_LANES then break end
  end
  return (#reply == 0 and looked >= PICK_LANES) and looked or 0
end

--[[ pick: what a purge would remove, for it to be written down first. ARGV state, n, older than (enqueued or parked before
  this Unix ms; 0 = any), offset (of waiting ones: in lanes), ids ... With ids only those, whatever of the three states they are in.
  Returns {how many were looked at, (id, envelope) ...}. ]]
register('pick', { 'allow-oom' }, function(keys, args)
  local P, state, n, before = keys[1], args[1], tonumber(args[2]), tonumber(args[3])
  local reply, looked = {}, 0
  if state == 'dead' or state == 'delayed' then
    local limit = (state == 'dead' and before > 0) and before or INF
    local ids = call('ZRANGEBYSCORE', P .. state, '-inf', limit, 'LIMIT', args[4], n)
    looked = #ids
    for i = 1, #ids do
      local envelope = envelope_of(P, ids[i]) or ''
      if state == 'dead' or before == 0 or born_of(envelope) < before then
        reply[#reply + 1] = ids[i]
        reply[#reply + 1] = envelope
      end
    end
  elseif state == 'waiting' then
    local vain = pick_waiting(P, n, before, tonumber(args[4]), reply)
    looked = #reply / 2 + vain
  else
    for i = 5, #args do
      local envelope = envelope_of(P, args[i])
      if envelope and envelope ~= '' and call('HEXISTS', P .. 'active', args[i]) == 0 then
        reply[#reply + 1] = args[i]
        reply[#reply + 1] = envelope
      end
    end
    looked = #args - 4
  end
  return { looked, reply }
end)

-- Takes a job that waits out of its lane where it stands at the head; anywhere else its place is found when the lane gets
-- there.
local function leave_lane(P, id, envelope)
  local lane = lane_of(envelope)
  for _, name in ipairs({ lane, suspect_lane(lane) }) do
    local list = P .. 'lane:' .. name
    if call('LINDEX', list, -1) == id then
      call('RPOP', list)
      call('HDEL', P .. 'jobs', id)
      if call('LLEN', list) == 0 then
        call('ZREM', ring_of(P, key_of(name)), name)
        call('ZREM', P .. 'held', name)
      end
      return
    end
  end
  call('HSET', P .. 'jobs', id, '')
  call('SADD', P .. 'ghosts', id)
end

--[[ purge: removes waiting, delayed or dead jobs by id. ARGV counter (discarded or removed), ids ... Running ones are left
  alone. Returns how many were removed. ]]
register('purge', { 'allow-oom' }, function(keys, args)
  local P, now, gone = keys[1], now_ms(), 0
  for i = 2, #args do
    local id = args[i]
    local envelope = envelope_of(P, id) or ''
    if call('HEXISTS', P .. 'active', id) == 0 then
      local stood = call('ZREM', P .. 'dead', id) + call('ZREM', P .. 'delayed', id) > 0
      if stood then
        drop_envelope(P, id)
      elseif envelope ~= '' then
        leave_lane(P, id, envelope)
      end
      if stood or envelope ~= '' then
        call('HDEL', P .. 'nohandler', id)
        forget_past(P, { id })
        conclude(P, now, id, envelope, 'gone', nil)
        gone = gone + 1
      end
    end
  end
  count(P, args[1], gone)
  return gone
end)

--[[ purge_results: removes stored results, oldest first. ARGV n, finished before this Unix ms (0 = any). Returns how many:
  fewer than n means that it is done. ]]
register('purge_results', { 'allow-oom' }, function(keys, args)
  local P, before = keys[1], tonumber(args[2])
  local ids = call('ZRANGEBYSCORE', P .. 'results', '-inf', before > 0 and before or INF, 'LIMIT', 0, args[1])
  if #ids > 0 then
    call('ZREM', P .. 'results', unpack(ids))
    call('HDEL', P .. 'result', unpack(ids))
  end
  return #ids
end)

--[[ set: ARGV field, value pairs; an empty value removes the field. Returns all settings. ]]
register('set', { 'allow-oom' }, function(keys, args)
  local P = keys[1]
  for i = 1, #args, 2 do
    if args[i + 1] == '' then call('HDEL', P .. 'cfg', args[i]) else call('HSET', P .. 'cfg', args[i], args[i + 1]) end
  end
  wake(P)
  return call('HGETALL', P .. 'cfg')
end)

--[[ release: lanes that a limit held back are judged anew, a step a call: for after a change of a limit. ARGV cursor ('0'
  starts). Returns the next cursor, '0' at the end. ]]
register('release', { 'allow-oom' }, function(keys, args)
  return review_held(keys[1], now_ms(), args[1], true)
end)

--[[ ends: one step of a walk over the notes of ends that wait for the history and are older than this, for one who writes
  them. ARGV older than ms, n, cursor ('0' starts). Returns {next cursor ('0' = done), numbers}: a step may find none and not
  be the last, as the hash keeps its size when it is emptied. ]]
register('ends', { 'no-writes' }, function(keys, args)
  local P, before = keys[1], now_ms() - tonumber(args[1])
  local step = call('HSCAN', P .. 'ends', args[3], 'COUNT', args[2])
  local list, numbers = step[2], {}
  for i = 1, #list, 2 do
    local at = tonumber(string.match(list[i + 1], '^%S+ (%d+) '))
    if not at or at <= before or at > before + DAY then numbers[#numbers + 1] = tonumber(list[i]) end
  end
  return { step[1], numbers }
end)

--[[ show: all that is known about one job. ARGV id, how far a lane is searched.
  Returns {now, envelope, active, failure record, crashes, due, dead since, forget at, cancel reason, progress, result,
  lane position (0 = next) or -1, held until, jobs in lanes before its own, slots used of its key, ghost 0|1, starts of
  the queue within the rate's period, those of its key, children left, holder of its unique key, log lines, 1 = among suspects}. ]]
register('show', { 'no-writes' }, function(keys, args)
  local P, id = keys[1], args[1]
  local envelope = envelope_of(P, id)
  local active = call('HGET', P .. 'active', id)
  local crashes = call('HGET', P .. 'crashes', id)
  local position, held, before, slots, limited, holder, suspect = -1, false, 0, 0, '', false, 0
  if envelope and envelope ~= '' and not active then
    local lane = lane_of(envelope)
    local key = key_of(lane)
    limited = limit_key(key)
    local _, _, meta = header(envelope)
    local u = meta and attr(meta, 'u')
    local owner = u and call('HGET', P .. 'unique', string.match(u, ':(.*)$'))
    if owner then holder = string.match(owner, '^%S+') end
    -- As a replay judges it: a throttle is no hindrance, nor is a holder that has ended.
    if holder and call('ZSCORE', P .. 'dead', id) and (string.sub(u, 1, 1) == 't' or not is_live(P, holder)) then
      holder = false
    end
    local at = call('LPOS', P .. 'lane:' .. lane, id, 'RANK', -1, 'MAXLEN', args[2])
    if not at then
      local other = suspect_lane(lane)
      at = call('LPOS', P .. 'lane:' .. other, id, 'RANK', -1, 'MAXLEN', args[2])
      if at then
        lane = other
        suspect = 1
      end
    end
    if at then position = call('LLEN', P .. 'lane:' .. lane) - 1 - at end
    held = call('ZSCORE', P .. 'held', lane)
    slots = call('SCARD', P .. 'slot:' .. limited)
    local score = call('ZSCORE', P .. 'ready', lane)
    if score then
      local earlier = call('ZRANGEBYSCORE', P .. 'ready', '-inf', '(' .. math.floor(tonumber(score) / BAND) * BAND, 'LIMIT', 0, 100)
      for i = 1, #earlier do before = before + call('LLEN', P .. 'lane:' .. earlier[i]) end
    end
  end
  return {
    now_ms(), envelope, active, call('HGET', P .. 'fail', id), crashes, call('ZSCORE', P .. 'delayed', id),
    call('ZSCORE', P .. 'dead', id), call('ZSCORE', P .. 'finished', id), call('HGET', P .. 'cancel', id),
    call('HGET', P .. 'progress', id), call('HGET', P .. 'result', id), position, held, before, slots,
    call('SISMEMBER', P .. 'ghosts', id), call('HGET', P .. 'rate', ''),
    limited ~= '' and call('HGET', P .. 'rate', limited), call('HGET', P .. 'children', id), holder,
    call('LRANGE', P .. 'log:' .. id, 0, -1), suspect,
  }
end)

--[[ stats: sizes, counters, settings. No ARGV. Returns {now, jobs, active, delayed, blocked (due = +inf), dead, remembered,
  ghosts, results, oldest waiting (Unix ms) or -1, suspects waiting, held lanes, counters, settings, workers (inc, lease
  end, ...), infos, two marks '<ms> <completed>'}. The oldest is looked for at the heads of at most 100 lanes. ]]
register('stats', { 'no-writes' }, function(keys, args)
  local P = keys[1]
  local oldest = -1
  local suspects = 0
  for _, ring in ipairs({ 'ready', 'held', 'suspect' }) do
    local lanes = call('ZRANGE', P .. ring, 0, 99)
    for i = 1, #lanes do
      local id = call('LINDEX', P .. 'lane:' .. lanes[i], -1)
      local envelope = id and call('HGET', P .. 'jobs', id)
      if envelope and envelope ~= '' then
        local born = tonumber(string.match(envelope, '^[^\n]*\n[^\n]*\n(%w+)') or '', 36)
        if born and (oldest < 0 or born < oldest) then oldest = born end
      end
      if ring == 'suspect' then suspects = suspects + call('LLEN', P .. 'lane:' .. lanes[i]) end
    end
  end
  local active = call('HLEN', P .. 'active') - call('HEXISTS', P .. 'active', '')
  return {
    now_ms(), call('HLEN', P .. 'jobs') + call('HLEN', P .. 'later'), active, call('ZCARD', P .. 'delayed'),
    call('ZCOUNT', P .. 'delayed', INF, INF), call('ZCARD', P .. 'dead'), call('ZCARD', P .. 'finished'),
    call('SCARD', P .. 'ghosts'), call('ZCARD', P .. 'results'), oldest, suspects, call('ZCARD', P .. 'held'),
    call('HGETALL', P .. 'n'), call('HGETALL', P .. 'cfg'),
    call('ZRANGE', P .. 'workers', 0, -1, 'WITHSCORES'), call('HGETALL', P .. 'info'),
    call('HGET', P .. 'pulse', 'mark'), call('HGET', P .. 'pulse', 'mark_before'),
  }
end)
