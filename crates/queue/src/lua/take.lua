--[[ take.lua: acknowledgements and the next lot, in one call. ]]

-- Settles plain completions of one token: args[i..j] are ids. Appends the refused ones to `stale`.
local function complete(P, token, args, i, j, stale)
  local values = call('HMGET', P .. 'active', unpack(args, i, j))
  local mine, n = nil, 0
  for k = 1, j - i + 1 do
    local value, id = values[k], args[i + k - 1]
    local own = value == token
    if not own then
      -- Up to here all were ours as they stand in `args`, which is what a whole lot ends as.
      mine = mine or { unpack(args, i, i + k - 2) }
      if value and string.sub(value, 1, #token + 1) == token .. '\n' then
        leave_active(P, id, token, string.sub(value, #token + 2))
        own = true
      else
        stale[#stale + 1] = id
      end
    end
    if own then
      n = n + 1
      if mine then mine[n] = id end
    end
  end
  if n == 0 then return 0 end
  if mine then args, i, j = mine, 1, n end
  call('HDEL', P .. 'active', unpack(args, i, j))
  call('HDEL', P .. 'jobs', unpack(args, i, j))
  forget_past(P, args, i, j)
  return n
end

local function acknowledge(P, args, i)
  local stale, done = {}, 0
  while i <= #args do
    local token, n = args[i], tonumber(args[i + 1])
    local a, stop = i + 2, i + 1 + n
    while a <= stop do
      local b = math.min(a + CHUNK - 1, stop)
      done = done + complete(P, token, args, a, b, stale)
      a = b + 1
    end
    i = stop + 1
  end
  count(P, 'completed', done)
  count(P, 'stale', #stale)
  return stale
end

-- The envelopes of due jobs. Those that waited for their first time join the others.
local function due_envelopes(P, due)
  local envelopes = call('HMGET', P .. 'jobs', unpack(due))
  local later, places = {}, {}
  for i = 1, #due do
    if not envelopes[i] then
      later[#later + 1] = due[i]
      places[#places + 1] = i
    end
  end
  if #later == 0 then return envelopes end
  local kept, moved = call('HMGET', P .. 'later', unpack(later)), {}
  for k = 1, #later do
    if kept[k] then
      envelopes[places[k]] = kept[k]
      moved[#moved + 1] = later[k]
      moved[#moved + 1] = kept[k]
    end
  end
  if #moved > 0 then
    call('HSET', P .. 'jobs', unpack(moved))
    call('HDEL', P .. 'later', unpack(later))
  end
  return envelopes
end

-- Moves at most 500 due jobs to their lanes, and limited lanes whose time has come to their rings.
local function promote(P, now)
  local due = call('ZRANGEBYSCORE', P .. 'delayed', '-inf', now, 'LIMIT', 0, 500)
  if #due > 0 then
    local envelopes = due_envelopes(P, due)
    local lanes, order = {}, {}
    for i = 1, #due do
      local envelope = envelopes[i]
      if envelope and envelope ~= '' then
        local lane = lane_of(envelope)
        if call('HEXISTS', P .. 'crashes', due[i]) == 1 then lane = suspect_lane(lane) end
        local list = lanes[lane]
        if not list then
          list = {}
          lanes[lane] = list
          order[#order + 1] = lane
        end
        list[#list + 1] = due[i]
      else
        count(P, 'removed', 1)
      end
    end
    for i = 1, #order do
      call('LPUSH', P .. 'lane:' .. order[i], unpack(lanes[order[i]]))
      offer(P, order[i])
    end
    call('ZREM', P .. 'delayed', unpack(due))
  end
  local open = call('ZRANGEBYSCORE', P .. 'held', '-inf', now, 'LIMIT', 0, 100)
  for i = 1, #open do
    call('ZREM', P .. 'held', open[i])
    offer(P, open[i])
  end
  return #due
end

local function earliest(P, zset)
  local first = call('ZRANGE', P .. zset, 0, 0, 'WITHSCORES')
  local at = first[2] and tonumber(first[2])
  if at and at < math.huge then return at end
  return nil
end

local function sooner(a, b)
  if a and b then return math.min(a, b) end
  return a or b
end

--[[ Fills a lot from the rings: the top band's lanes in turn, each an equal share. Answers the ids, when a limit that
  cut the lot opens again, whether work is left, and of the suspects: the id of the one in the lot, 1 when some wait that
  the caller may not have, or 0. ]]
local function fill(P, now, inc, token, want, cfg, may_suspect)
  local ids, fields, opens = {}, {}, nil
  local rate_limit, rate_period = parse_rate(cfg.rate)
  local rate_entries
  if rate_limit then
    local free
    free, opens, rate_entries = rate_left(P, '', now, rate_limit, rate_period)
    want = math.min(want, free)
  end
  if cfg.concurrency then
    want = math.min(want, tonumber(cfg.concurrency) - (call('HLEN', P .. 'active') - 1))
  end
  local key_rate, key_period = parse_rate(cfg.key_rate)
  local ghosts = call('EXISTS', P .. 'ghosts') == 1

  -- Pops up to n ids of a lane and keeps its ring entry true. Answers how many started.
  local function serve(ring, lane, n, alone, siblings)
    local key = key_of(lane)
    local limited = limit_key(key)
    local entries
    if limited ~= '' then
      if cfg.key_concurrency then
        local free = slots_free(P, limited, tonumber(cfg.key_concurrency))
        if free <= 0 then
          hold(P, lane, key, INF)
          return 0
        end
        n = math.min(n, free)
      end
      if key_rate then
        local free, at
        free, at, entries = rate_left(P, limited, now, key_rate, key_period)
        if free <= 0 then
          hold(P, lane, key, at)
          opens = sooner(opens, at)
          return 0
        end
        n = math.min(n, free)
      end
    end
    local popped = call('RPOP', P .. 'lane:' .. lane, n)
    if not popped then
      call('ZREM', ring, lane)
      return 0
    end
    local marks = ghosts and call('SMISMEMBER', P .. 'ghosts', unpack(popped))
    local value = key == '' and token or (token .. '\n' .. lane)
    -- A limited job is written at once: the next look at its key's slots asks what runs.
    local into = limited == '' and fields or {}
    local before, field = #ids, #into
    local last = before
    for i = 1, #popped do
      local id = popped[i]
      if marks and marks[i] == 1 then
        call('SREM', P .. 'ghosts', id)
        call('HDEL', P .. 'jobs', id)
      else
        last, field = last + 1, field + 2
        ids[last], into[field - 1], into[field] = id, id, value
        if limited ~= '' then call('SADD', P .. 'slot:' .. limited, id) end
      end
    end
    local started = last - before
    if limited ~= '' and started > 0 then call('HSET', P .. 'active', unpack(into)) end
    if entries and started > 0 then rate_spend(P, limited, now, entries, started, key_rate, key_period) end
    if #popped < n or call('LLEN', P .. 'lane:' .. lane) == 0 then
      call('ZREM', ring, lane)
    elseif not alone then
      -- A lane among its tenant's k moves on by k turns a job: together they have one tenant's turn.
      call('ZINCRBY', ring, #popped * siblings, lane)
    end
    return started
  end

  -- One suspect a worker process: when it dies, the blame is certain.
  local suspect = 0
  if want > 0 and call('EXISTS', P .. 'suspect') == 1 and call('HEXISTS', P .. 'blame', inc) == 0 then
    if not may_suspect then suspect = 1 end
    local lanes = may_suspect and call('ZRANGE', P .. 'suspect', 0, 9) or {}
    for i = 1, #lanes do
      if serve(P .. 'suspect', lanes[i], 1, false, 1) == 1 then
        suspect = ids[#ids]
        call('HSET', P .. 'blame', inc, suspect)
        break
      end
    end
  end

  local rounds = 0
  while #ids < want and rounds < 64 do
    rounds = rounds + 1
    local lanes = call('ZRANGE', P .. 'ready', 0, 63, 'WITHSCORES')
    if #lanes == 0 then break end
    local band = math.floor(tonumber(lanes[2]) / BAND)
    local top = 0
    while lanes[2 * top + 2] and math.floor(tonumber(lanes[2 * top + 2]) / BAND) == band do top = top + 1 end
    -- A tenant has one share, however many lanes its limit keys make.
    local tenants, of, lanes_of, got = 0, {}, {}, {}
    for i = 1, top do
      local tenant = top > 1 and string.match(lanes[2 * i - 1], '|([^|]*)|') or ''
      if not lanes_of[tenant] then
        tenants = tenants + 1
        lanes_of[tenant], got[tenant] = 0, 0
      end
      of[i], lanes_of[tenant] = tenant, lanes_of[tenant] + 1
    end
    -- Of a tenant that fills much of the window most lanes lie beyond it, as many as its part of the window says.
    local scale = tenants < top and top == 64 and call('ZCOUNT', P .. 'ready', band * BAND, (band + 1) * BAND - 1) / top or 1
    local share = math.max(1, math.ceil((want - #ids) / tenants))
    for i = 1, top do
      if #ids >= want then break end
      local tenant = of[i]
      local siblings = lanes_of[tenant]
      local turns = siblings < 8 and siblings or math.floor(siblings * scale)
      local n = math.min(math.ceil(share / siblings), share - got[tenant], want - #ids)
      if n > 0 then got[tenant] = got[tenant] + serve(P .. 'ready', lanes[2 * i - 1], n, top == 1, turns) end
    end
  end

  chunked(fields, function(i, j) call('HSET', P .. 'active', unpack(fields, i, j)) end)
  if rate_limit and #ids > 0 then rate_spend(P, '', now, rate_entries, #ids, rate_limit, rate_period) end
  -- Rounds that met only cancelled ids, or lanes that had to be held, end the call and not the search.
  return ids, opens, want > 0 and (#ids >= want or rounds >= 64) and call('EXISTS', P .. 'ready') == 1, suspect
end

local function read_cfg(P)
  local v = call('HMGET', P .. 'cfg', 'paused', 'rate', 'concurrency', 'key_concurrency', 'key_rate', 'worker_concurrency', 'base_rate')
  return {
    paused = v[1], rate = v[2] or v[7], concurrency = v[3], key_concurrency = v[4], key_rate = v[5], worker_concurrency = v[6],
  }
end

--[[ take: renews the lease, settles plain completions, promotes what is due and hands out a lot.
  ARGV incarnation, lease ms, want, token, envelopes inside up to this many jobs, 1 = a suspect may be in the lot, then
  acks: token, n, n ids ...
  The client never sends it twice: a lot whose reply was lost would lie under a living worker.
  Returns {token, state, now, next due or -1, stale ids, cancelled running ids, ids, envelopes or {}, failure records
  (id, record, ...), worker concurrency or -1, the suspect's id, 1 when suspects wait that the caller may not have, or 0};
  state: 0 fenced (the incarnation is not known: join anew), 1 leased,
  2 paused, 3 leased and work is left. ]]
register('take', { 'allow-oom' }, function(keys, args)
  local P = keys[1]
  local inc, lease, want, token = args[1], tonumber(args[2]), tonumber(args[3]), args[4]
  local now = now_ms()
  local stale = acknowledge(P, args, 7)
  if not call('ZSCORE', P .. 'workers', inc) then
    return { token, 0, now, -1, stale, {}, {}, {}, {}, -1, 0 }
  end
  call('ZADD', P .. 'workers', now + lease, inc)
  local cfg = read_cfg(P)
  local cancelled = call('EXISTS', P .. 'cancel') == 1 and call('HKEYS', P .. 'cancel') or {}
  local worker_concurrency = tonumber(cfg.worker_concurrency or -1)
  local promoted = promote(P, now)
  local ids, opens, left, suspect, state = {}, nil, false, 0, 1
  if cfg.paused then
    state = 2
  elseif want > 0 then
    ids, opens, left, suspect = fill(P, now, inc, token, math.min(want, 1000), cfg, args[6] == '1')
    if left then
      wake(P)
      state = 3
    end
  elseif cfg.concurrency and #args > 6 then
    freed(P)
  end
  if promoted == 500 then wake(P) end
  local next_due = sooner(sooner(earliest(P, 'delayed'), earliest(P, 'held')), opens)
  local envelopes, records = {}, {}
  if #ids > 0 then
    if #ids <= tonumber(args[5]) then envelopes = call('HMGET', P .. 'jobs', unpack(ids)) end
    if call('EXISTS', P .. 'fail') == 1 then
      local found = call('HMGET', P .. 'fail', unpack(ids))
      for i = 1, #ids do
        if found[i] then
          records[#records + 1] = ids[i]
          records[#records + 1] = found[i]
        end
      end
    end
  end
  return { token, state, now, next_due or -1, stale, cancelled, ids, envelopes, records, worker_concurrency, suspect }
end)

--[[ ack: settles plain completions outside a take. ARGV token, n, n ids ... Returns the refused ids. ]]
register('ack', { 'allow-oom' }, function(keys, args)
  local stale = acknowledge(keys[1], args, 1)
  freed(keys[1])
  return stale
end)
