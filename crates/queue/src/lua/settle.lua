--[[ settle.lua: every end of an attempt that is not a plain completion. Each compares the lease's token first. ]]

local function give_back(P, id, token, lane, now)
  local envelope = call('HGET', P .. 'jobs', id)
  leave_active(P, id, token, lane)
  if not envelope or envelope == '' then
    -- Somebody deleted the envelope by hand: nothing is left to run.
    call('HDEL', P .. 'jobs', id)
    forget_past(P, { id })
    count(P, 'removed', 1)
    return
  end
  if lane == '' then lane = lane_of(envelope) end
  enqueue_head(P, lane, id)
  rate_refund(P, '', 1)
  local key = limit_key(key_of(lane))
  if key ~= '' then rate_refund(P, key, 1) end
end

local verbs = {}

-- a: result JSON or ''; b: how long the result is kept, ms.
verbs.done = function(P, now, id, envelope, a, b)
  local _, _, meta = header(envelope)
  local result = a ~= '' and a or nil
  forget(P, now, id, meta)
  forget_past(P, { id })
  conclude(P, now, id, envelope, 'done', result)
  if result and tonumber(b) > 0 then
    call('HSET', P .. 'result', id, result)
    call('ZADD', P .. 'results', now, id)
  end
  count(P, 'completed', 1)
end

-- a: delay ms; b: the new failure record.
verbs.retry = function(P, now, id, envelope, a, b)
  call('HSET', P .. 'fail', id, b)
  call('HDEL', P .. 'progress', id)
  delay(P, id, now + tonumber(a))
  count(P, 'failed', 1)
end

-- a: delay ms. No attempt is spent.
verbs.snooze = function(P, now, id, envelope, a)
  delay(P, id, now + tonumber(a))
  count(P, 'snoozed', 1)
end

-- a: reason, and after a line break the record for the history where it could not be written before; b: failure record.
verbs.park = function(P, now, id, envelope, a, b)
  local reason, record = string.match(a, '^([^\n]*)\n?(.*)$')
  park(P, now, id, envelope, reason, b)
  if record ~= '' then note_end(P, now, id, envelope, 'dead:' .. reason, '', record) end
  call('HDEL', P .. 'progress', id)
end

-- a: the record for the history as the worker has it, or ''. Answers the number of the end.
verbs.cancelled = function(P, now, id, envelope, a)
  note_end(P, now, id, envelope, 'cancelled', 'cancelled while it ran', a)
  local number = noted[#noted]
  call('HDEL', P .. 'jobs', id)
  forget_past(P, { id })
  conclude(P, now, id, envelope, 'gone', nil)
  count(P, 'cancelled', 1)
  return number
end

local comes_back = { back = true, retry = true, snooze = true }

--[[ settle: ARGV n times: id, token, verb, a, b. verb: done, retry, snooze, park, cancelled, back.
  A job whose cancellation was asked for does not come back: back, retry and snooze then end it as cancelled.
  Returns per job 1, 0 (stale: the token does not own the job), or {number of its end, envelope} of one that was cancelled. ]]
register('settle', { 'allow-oom' }, function(keys, args)
  local P, now, reply, stale = keys[1], now_ms(), {}, 0
  for i = 1, #args, 5 do
    local id, token, verb, a, b = args[i], args[i + 1], args[i + 2], args[i + 3], args[i + 4]
    local lane = owned(P, id, token)
    if not lane then
      reply[#reply + 1] = 0
      stale = stale + 1
    else
      local answer = 1
      local asked = comes_back[verb] and call('HEXISTS', P .. 'cancel', id) == 1
      if verb == 'back' and not asked then
        give_back(P, id, token, lane, now)
        wake(P)
      else
        local envelope = call('HGET', P .. 'jobs', id)
        leave_active(P, id, token, lane)
        if envelope and envelope ~= '' then
          if asked then
            answer = { verbs.cancelled(P, now, id, envelope, ''), envelope }
          elseif verb == 'cancelled' then
            answer = { verbs.cancelled(P, now, id, envelope, a), envelope }
          else
            verbs[verb](P, now, id, envelope, a, b)
          end
        else
          -- Somebody deleted the envelope by hand: nothing is left to run or to park.
          call('HDEL', P .. 'jobs', id)
          forget_past(P, { id })
          count(P, 'removed', 1)
        end
      end
      call('HDEL', P .. 'cancel', id)
      reply[#reply + 1] = answer
    end
  end
  freed(P)
  count(P, 'stale', stale)
  return reply
end)

--[[ note: progress and log lines of a running job. ARGV id, token, progress or '', lines kept, lines ...
  Returns 1, or 0 when the token does not own the job. ]]
register('note', { 'allow-oom' }, function(keys, args)
  local P, id = keys[1], args[1]
  if not owned(P, id, args[2]) then
    count(P, 'stale', 1)
    return 0
  end
  if args[3] ~= '' then call('HSET', P .. 'progress', id, args[3]) end
  if #args > 4 then
    call('RPUSH', P .. 'log:' .. id, unpack(args, 5))
    call('LTRIM', P .. 'log:' .. id, -tonumber(args[4]), -1)
    call('PEXPIRE', P .. 'log:' .. id, 7 * DAY)
  end
  return 1
end)
