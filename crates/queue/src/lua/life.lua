--[[ life.lua: what follows from a job's end, for its unique key and its parent. ]]

local conclude

-- `u` is '<mode><ttl>:<key>'. Only the holder frees its key; a throttle outlives its holder.
local function unique_release(P, now, u, id)
  local mode, key = string.match(u, '^(%a)%d*:(.*)$')
  local held = call('HGET', P .. 'unique', key)
  if not held then return end
  local holder, expires = string.match(held, '^(%S+) (%d+)$')
  if holder ~= id then return end
  if mode == 't' and tonumber(expires) > now then return end
  local waiting = call('HGET', P .. 'unique', key .. '\n')
  if not waiting then
    call('HDEL', P .. 'unique', key)
    return
  end
  local heir, due = string.match(waiting, '^(%S+) (%d+)$')
  call('HDEL', P .. 'unique', key .. '\n')
  call('HSET', P .. 'unique', key, heir .. ' 0')
  local envelope = envelope_of(P, heir)
  -- Gone, or parked because a child of its failed: nobody waits for the key.
  if not envelope or envelope == '' or not call('ZSCORE', P .. 'delayed', heir) then
    call('HDEL', P .. 'unique', key)
    return
  end
  -- A parent has the key now, and goes on waiting for its children.
  if call('HEXISTS', P .. 'children', heir) == 1 then return end
  if tonumber(due) > now then
    delay(P, heir, tonumber(due))
  else
    call('ZREM', P .. 'delayed', heir)
    fetch_envelope(P, heir, envelope)
    enqueue_tail(P, lane_of(envelope), heir)
    wake(P)
  end
end

local function park(P, now, id, envelope, reason, record)
  call('ZADD', P .. 'dead', now, id)
  call('HSET', P .. 'fail', id, record)
  local _, kind = header(envelope)
  if reason == 'no_handler' then call('HSET', P .. 'nohandler', id, kind or '') end
  count(P, 'parked', 1)
  count(P, 'parked:' .. reason, 1)
  conclude(P, now, id, envelope, 'dead', nil)
end

-- True while a newest-of-its-key waits for the one that runs.
local function is_parked(P, id, envelope)
  local _, _, meta = header(envelope)
  local u = meta and attr(meta, 'u')
  local waiting = u and call('HGET', P .. 'unique', string.match(u, ':(.*)$') .. '\n')
  return waiting and string.match(waiting, '^%S+') == id
end

-- One child is counted off once, whatever happens to it later (a replay, a second end).
local function child_ended(P, now, parent, id, policy, outcome, result)
  if outcome == 'dead' and policy == 'w' then return end
  local tie = call('HGET', P .. 'children', parent .. '\n' .. id)
  if not tie then return end
  call('HDEL', P .. 'children', parent .. '\n' .. id)
  local envelope = envelope_of(P, parent)
  if not envelope then
    -- A child that was accepted without its parent: that may come yet. One that was there and is gone (cancelled, purged)
    -- gets neither a result nor a count: nobody would remove them again.
    if tie == '0' then
      call('HSET', P .. 'early:' .. parent, id, policy .. ' ' .. outcome .. '\n' .. (result or ''))
      call('PEXPIRE', P .. 'early:' .. parent, DAY)
    end
    return
  end
  if envelope == '' then return end
  if outcome == 'done' and result then call('HSET', P .. 'kids:' .. parent, id, result) end
  local left = call('HINCRBY', P .. 'children', parent, -1)
  if outcome ~= 'done' and policy == 'f' then
    if call('ZREM', P .. 'delayed', parent) == 1 then
      call('HDEL', P .. 'children', parent, parent .. '\n')
      if is_parked(P, parent, envelope) then
        local _, _, meta = header(envelope)
        call('HDEL', P .. 'unique', string.match(attr(meta, 'u'), ':(.*)$') .. '\n')
      end
      local why = string.format('child %s ended as %s', id, outcome)
      park(P, now, parent, envelope, 'child_failed', string.format('0 child_failed %.0f 0\n%s', now, why))
      note_end(P, now, parent, envelope, 'dead:child_failed', why)
    end
    return
  end
  if left <= 0 then
    local due = tonumber(call('HGET', P .. 'children', parent .. '\n') or 0)
    call('HDEL', P .. 'children', parent, parent .. '\n')
    -- Behind the holder of its unique key it waits on: that one's end lets it go.
    if is_parked(P, parent, envelope) then return end
    if call('ZREM', P .. 'delayed', parent) == 1 then
      if due > now then
        delay(P, parent, due)
      else
        fetch_envelope(P, parent, envelope)
        enqueue_tail(P, lane_of(envelope), parent)
        wake(P)
      end
    end
  end
end

-- outcome: 'done', 'dead' (parked, may come back) or 'gone' (cancelled, discarded, removed).
conclude = function(P, now, id, envelope, outcome, result)
  local _, _, meta = header(envelope)
  if not meta then return end
  local u = attr(meta, 'u')
  if u then unique_release(P, now, u, id) end
  local parent = attr(meta, 'p')
  if parent then child_ended(P, now, parent, id, attr(meta, 'f') or 'w', outcome, result) end
  if outcome ~= 'dead' and attr(meta, 'c') then
    call('DEL', P .. 'kids:' .. id)
    call('HDEL', P .. 'children', id, id .. '\n')
  end
end

-- Removes what only jobs with a past have, of all `ids` or of ids[from..to]. One EXISTS keeps the ordinary job cheap.
local function forget_past(P, ids, from, to)
  if call('EXISTS', P .. 'fail', P .. 'crashes', P .. 'cancel', P .. 'progress') == 0 then return end
  chunked(ids, function(i, j)
    call('HDEL', P .. 'fail', unpack(ids, i, j))
    call('HDEL', P .. 'crashes', unpack(ids, i, j))
    call('HDEL', P .. 'cancel', unpack(ids, i, j))
    call('HDEL', P .. 'progress', unpack(ids, i, j))
  end, from, to)
end

-- Takes a job out of `active` when `token` still owns it. Answers the lane it ran in ('' for a plain one), or nil.
local function owned(P, id, token)
  local value = call('HGET', P .. 'active', id)
  if not value then return nil end
  if value == token then return '' end
  if string.sub(value, 1, #token + 1) == token .. '\n' then return string.sub(value, #token + 2) end
  return nil
end

local function leave_active(P, id, token, lane)
  call('HDEL', P .. 'active', id)
  if lane ~= '' then
    local key = key_of(lane)
    slot_release(P, limit_key(key), id)
    if string.sub(key, 1, 1) == '~' then
      local inc = string.match(token, '^[^.]*')
      if call('HGET', P .. 'blame', inc) == id then call('HDEL', P .. 'blame', inc) end
      wake(P)
    end
  end
end

-- The id leaves `jobs`, or stays as an empty mark so that a repeated enqueue of the same id is known.
local function forget(P, now, id, meta)
  local keep = tonumber(meta and attr(meta, 'm') or 0) or 0
  if keep > 0 then
    call('HSET', P .. 'jobs', id, '')
    call('ZADD', P .. 'finished', now + keep, id)
  else
    call('HDEL', P .. 'jobs', id)
  end
end
