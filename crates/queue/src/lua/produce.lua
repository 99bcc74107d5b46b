--[[ produce.lua: accepting jobs. None of these may run at maxmemory: a full Redis refuses new work and drains. ]]

local function refusal(P)
  local cfg = call('HMGET', P .. 'cfg', 'draining', 'producers_paused')
  if cfg[1] then return redis.error_reply('QDRAINING the queue is draining and takes no new jobs') end
  if cfg[2] then return redis.error_reply('QPAUSED enqueueing to the queue is paused by an operator') end
  return nil
end

--[[ enqueue: a batch of jobs with generated ids.
  ARGV nonce, last counter of the batch, then groups: lane, n, n times (id, envelope).
  A batch whose last counter is not above the stored one came before: nothing is done, the answer is success.
  Returns {how many jobs were accepted now, Redis time in ms}. ]]
register('enqueue', {}, function(keys, args)
  local P = keys[1]
  local nonce, last = args[1], tonumber(args[2])
  local seen = call('HGET', P .. 'producers', nonce)
  local now = now_ms()
  -- Looked at first: a batch that came in before the queue was quieted is in, whatever its repetition finds.
  if seen and tonumber(string.match(seen, '^%d+')) >= last then return { 0, now } end
  local refused = refusal(P)
  if refused then return refused end
  call('HSET', P .. 'producers', nonce, string.format('%.0f %.0f', last, now))
  local i, total = 3, 0
  while i <= #args do
    local lane, n = args[i], tonumber(args[i + 1])
    local first, stop = i + 2, i + 1 + 2 * n
    local a = first
    while a <= stop do
      local b = math.min(a + 2 * CHUNK - 1, stop)
      call('HSET', P .. 'jobs', unpack(args, a, b))
      local ids = {}
      for k = a, b, 2 do ids[#ids + 1] = args[k] end
      call('LPUSH', P .. 'lane:' .. lane, unpack(ids))
      a = b + 1
    end
    offer(P, lane)
    total = total + n
    i = stop + 1
  end
  count(P, 'accepted', total)
  wake(P)
  return { total, now }
end)

-- Drops a job that waits (in a lane, delayed or parked behind a holder) because a newer one replaces it.
local function supersede(P, now, id, by)
  local envelope = envelope_of(P, id)
  if not envelope or envelope == '' then return end
  if call('ZREM', P .. 'delayed', id) == 1 then
    drop_envelope(P, id)
  else
    call('HSET', P .. 'jobs', id, '')
    call('SADD', P .. 'ghosts', id)
  end
  note_end(P, now, id, envelope, 'cancelled', 'replaced by ' .. by)
  forget_past(P, { id })
  local _, _, meta = header(envelope)
  if meta and attr(meta, 'c') then
    call('DEL', P .. 'kids:' .. id)
    call('HDEL', P .. 'children', id, id .. '\n')
  end
  local parent = meta and attr(meta, 'p')
  if parent then child_ended(P, now, parent, id, attr(meta, 'f') or 'w', 'gone', nil) end
  count(P, 'cancelled', 1)
  count(P, 'replaced', 1)
end

local function is_live(P, id)
  local envelope = envelope_of(P, id)
  return envelope and envelope ~= '' and not call('ZSCORE', P .. 'dead', id)
end

--[[ Decides what a unique key means for a new job. Answers nil to go on, 'park' to wait behind the running holder, or
  the id that holds the key. `due` is 0 or ms. ]]
local function claim_unique(P, now, u, id, due)
  local mode, ttl, key = string.match(u, '^(%a)(%d*):(.*)$')
  if not mode then return nil end
  local held = call('HGET', P .. 'unique', key)
  local holder, expires
  if held then holder, expires = string.match(held, '^(%S+) (%d+)$') end
  if mode == 't' then
    if holder and tonumber(expires) > now then return holder end
    call('HSET', P .. 'unique', key, string.format('%s %.0f', id, now + (tonumber(ttl) or 0)))
    return nil
  end
  if not holder or not is_live(P, holder) then
    call('HSET', P .. 'unique', key, id .. ' 0')
    return nil
  end
  if mode == 'r' then return holder end
  local waiting = call('HGET', P .. 'unique', key .. '\n')
  if waiting then
    supersede(P, now, string.match(waiting, '^%S+'), id)
    call('HDEL', P .. 'unique', key .. '\n')
  end
  local runs = call('HEXISTS', P .. 'active', holder) == 1
  if not runs then supersede(P, now, holder, id) end
  if not runs or mode == 'x' then
    call('HSET', P .. 'unique', key, id .. ' 0')
    return nil
  end
  call('HSET', P .. 'unique', key .. '\n', string.format('%s %.0f', id, due))
  return 'park'
end

-- Every well-formed sequence of UTF-8 beyond ASCII, by its first bytes: no surrogates, overlong forms or code points that do
-- not exist. What is left over when they are taken out is none.
local SEQUENCES = {
  '[\194-\223][\128-\191]', '\224[\160-\191][\128-\191]', '[\225-\236\238\239][\128-\191][\128-\191]',
  '\237[\128-\159][\128-\191]', '\240[\144-\191][\128-\191][\128-\191]',
  '[\241-\243][\128-\191][\128-\191][\128-\191]', '\244[\128-\143][\128-\191][\128-\191]',
}

local function is_utf8(text)
  for i = 1, #SEQUENCES do
    -- Anchored, which is twice as fast as looking for a byte of the others.
    if string.find(text, '^[%z\1-\127]*$') then return true end
    -- A space and not nothing: what stood around a sequence must not become one.
    text = string.gsub(text, SEQUENCES[i], ' ')
  end
  return string.find(text, '^[%z\1-\127]*$') ~= nil
end

-- The largest number whose every smaller one a score, a double, holds exactly.
local EXACT = 9007199254740992

local function is_whole(n)
  return n == n and n >= 0 and n <= EXACT and n == math.floor(n)
end

-- A payload, and what of header there can be.
local PAYLOAD_MAX = 1048576
local ENVELOPE_MAX = PAYLOAD_MAX + 4096

-- What is wrong with a job as given: nil when nothing is, and then its meta line.
local function fault(id, lane, due, envelope)
  if #id == 0 or #id > 128 or string.find(id, '[%c ]') or not is_utf8(id) then
    return 'QBAD id: 1 to 128 bytes of UTF-8 without spaces or control characters'
  end
  if not due or not is_whole(due) then return 'QBAD due of ' .. id .. ': Unix ms, +ms from now, or 0; whole, up to 2^53' end
  if #envelope > ENVELOPE_MAX then return 'QBAD envelope of ' .. id .. ': a payload has at most 1 MiB' end
  local head, kind, meta = header(envelope)
  if not head or head ~= lane or kind == '' then
    return 'QBAD envelope of ' .. id .. ': expected lane, kind, meta and payload, one a line, the lane as given'
  end
  local prio = tonumber(string.match(lane, '^(%d%d?)|[%w%._%-%%]*|[%w%._%-%%]*$'))
  if not prio or prio > 10 or #lane > 140 then
    return 'QBAD lane of ' .. id .. ': expected <0..10>|<tenant>|<key>, the latter two percent-encoded'
  end
  return nil, meta
end

-- True of a job whose end touches no other: no unique key, no parent, no children.
local function is_single(meta)
  return not string.find(meta, ' [ucp]=')
end

--[[ Parents that this batch brings, by id; each shall get one end from each child. A child whose id is known and has not
  ended, or that comes twice, belongs to somebody else and would never end for this parent: that is told and nothing
  accepted. Answers the parents, or nil and what is wrong. ]]
local function flows_of(P, args, from, metas)
  local fresh, any = {}, false
  for i = from + 1, #args, 4 do
    local meta = metas[i]
    if not is_single(meta) and tonumber(attr(meta, 'c') or 0) > 0 and not envelope_of(P, args[i]) then
      fresh[args[i]] = true
      any = true
    end
  end
  if not any then return fresh end
  local seen = {}
  for i = from + 1, #args, 4 do
    local id = args[i]
    local parent = attr(metas[i], 'p')
    if parent and fresh[parent] then
      local present = envelope_of(P, id)
      if seen[id] or fresh[id] and parent == id then
        return nil, 'QBAD child ' .. id .. ' of ' .. parent .. ': the id is in the batch twice'
      elseif present and present ~= '' then
        return nil, 'QBAD child ' .. id .. ' of ' .. parent .. ': the id is known and its job has not ended'
      end
    end
    seen[id] = true
  end
  return fresh
end

-- Children that ended before their parent came are counted off now. Answers them, or nil.
local function settle_early(P, now, id)
  local early = call('HGETALL', P .. 'early:' .. id)
  if #early == 0 then return nil end
  call('DEL', P .. 'early:' .. id)
  local done = {}
  for i = 1, #early, 2 do
    local child, policy, outcome, result = early[i], string.match(early[i + 1], '^(%a) (%a+)\n(.*)$')
    call('HSET', P .. 'children', id .. '\n' .. child, 1)
    child_ended(P, now, id, child, policy, outcome, result ~= '' and result or nil)
    done[child] = true
  end
  return done
end

local function remembered(envelope, meta)
  if attr(meta, 'm') then return envelope end
  return (string.gsub(envelope, '^([^\n]*\n[^\n]*\n[^\n]*)', '%1 m=' .. DAY, 1))
end

-- Accepts one job. `early` takes in, by parent, the children that had ended before it came.
local function accept_one(P, now, id, lane, due, envelope, early)
  local _, _, meta = header(envelope)
  local present = envelope_of(P, id)
  if present then
    -- A child that finished before its parent was (re)written counts off at once.
    local parent = attr(meta, 'p')
    if parent and present == '' then child_ended(P, now, parent, id, attr(meta, 'f') or 'w', 'done', nil) end
    return { 0, id }
  end
  envelope = remembered(envelope, meta)
  local u = attr(meta, 'u')
  local row = { 1, id }
  local place = nil
  if u then
    place = claim_unique(P, now, u, id, due)
  end
  if place and place ~= 'park' then
    count(P, 'duplicates', 1)
    return { 2, place }
  end
  local children = tonumber(attr(meta, 'c') or 0)
  local waits = place == 'park' or children > 0
  call('HSET', P .. ((due > now and not waits) and 'later' or 'jobs'), id, envelope)
  if children > 0 then
    call('HSET', P .. 'children', id, children)
    if due > now then call('HSET', P .. 'children', id .. '\n', string.format('%.0f', due)) end
  end
  local parent = attr(meta, 'p')
  if parent then
    local there = envelope_of(P, parent) and 1 or 0
    call('HSET', P .. 'children', parent .. '\n' .. id, there)
  end
  if waits then
    call('ZADD', P .. 'delayed', INF, id)
  elseif due > now then
    delay(P, id, due)
  else
    enqueue_tail(P, lane, id)
    wake(P)
  end
  count(P, 'accepted', 1)
  if children > 0 then early[id] = settle_early(P, now, id) end
  for i = 1, #noted do row[2 + i] = noted[i] end
  noted = {}
  return row
end

-- The queue that a prefix names, or nil: a job under any other key would be nobody's.
local function queue_of(P)
  local queue = string.match(P or '', '^voiceai:queue:{([%w%._%-]+)}:$')
  return queue and #queue <= 64 and queue or nil
end

local BAD_KEY = 'QBAD key: voiceai:queue:{<queue>}: with braces and the last colon, the queue 1 to 64 letters, digits, dots, '
  .. 'dashes or underscores'

-- With its first job a queue is put where `queue list` finds it. In a cluster the list lies in another slot, and an account
-- may have no right to it: then the first of our own processes that meets the queue does it.
local function list_queue(P, queue)
  if call('HEXISTS', P .. 'n', 'accepted') == 0 then redis.pcall('SADD', 'voiceai:queues', queue) end
end

-- Which ids of a batch are known: a job, or a mark that is left of one.
local function known_of(P, args, from)
  local ids, known = {}, {}
  for i = from + 1, #args, 4 do ids[#ids + 1] = args[i] end
  for _, hash in ipairs({ 'jobs', 'later' }) do
    chunked(ids, function(i, j)
      local found = call('HMGET', P .. hash, unpack(ids, i, j))
      for k = 1, #found do
        if found[k] then known[ids[i + k - 1]] = true end
      end
    end)
  end
  return known
end

--[[ Single jobs of a batch, which are written together: several times as fast as one by one. `put` takes one, `flush` writes
  what was put, so that what comes after in the same batch stands behind it. ]]
local function singles(P, now)
  local jobs, later, due_of, lanes, order, earliest, n = {}, {}, {}, {}, {}, nil, 0
  local function flush()
    if n == 0 then return end
    chunked(jobs, function(i, j) call('HSET', P .. 'jobs', unpack(jobs, i, j)) end)
    chunked(later, function(i, j) call('HSET', P .. 'later', unpack(later, i, j)) end)
    if earliest then
      local first = call('ZRANGE', P .. 'delayed', 0, 0, 'WITHSCORES')
      chunked(due_of, function(i, j) call('ZADD', P .. 'delayed', unpack(due_of, i, j)) end)
      if not first[2] or earliest < tonumber(first[2]) then wake(P) end
    end
    for k = 1, #order do
      local ids = lanes[order[k]]
      chunked(ids, function(i, j) call('LPUSH', P .. 'lane:' .. order[k], unpack(ids, i, j)) end)
      offer(P, order[k])
    end
    if #order > 0 then wake(P) end
    count(P, 'accepted', n)
    jobs, later, due_of, lanes, order, earliest, n = {}, {}, {}, {}, {}, nil, 0
  end
  local function put(id, lane, due, envelope)
    n = n + 1
    if due > now then
      later[#later + 1], later[#later + 2] = id, envelope
      due_of[#due_of + 1], due_of[#due_of + 2] = due, id
      if not earliest or due < earliest then earliest = due end
      return
    end
    jobs[#jobs + 1], jobs[#jobs + 2] = id, envelope
    local ids = lanes[lane]
    if not ids then
      ids = {}
      lanes[lane] = ids
      order[#order + 1] = lane
    end
    ids[#ids + 1] = id
  end
  return put, flush
end

local function accept_many(P, args, from)
  local queue = queue_of(P)
  if not queue then return redis.error_reply(BAD_KEY) end
  local refused = refusal(P)
  if refused then return refused end
  local n = tonumber(args[from])
  if not n or #args ~= from + 4 * n then
    return redis.error_reply('QBAD expected a count and four values a job: id, lane, due in ms or 0, envelope')
  end
  -- Every job is checked before the first is written: a batch is taken whole or not at all.
  local metas = {}
  for i = from + 1, #args, 4 do
    local wrong, meta = fault(args[i], args[i + 1], tonumber(args[i + 2]), args[i + 3])
    if wrong then return redis.error_reply(wrong) end
    metas[i] = meta
  end
  local fresh, tangled = flows_of(P, args, from, metas)
  if not fresh then return redis.error_reply(tangled) end
  list_queue(P, queue)
  local now, reply = now_ms(), {}
  local ended, early = {}, {}
  local known = known_of(P, args, from)
  local put, flush = singles(P, now)
  for i = from + 1, #args, 4 do
    local id, meta = args[i], metas[i]
    local due = tonumber(args[i + 2])
    if string.byte(args[i + 2]) == 43 then due = now + due end -- a plus
    local row
    if is_single(meta) then
      row = { known[id] and 0 or 1, id }
      if not known[id] then put(id, args[i + 1], due, remembered(args[i + 3], meta)) end
    else
      flush()
      row = accept_one(P, now, id, args[i + 1], due, args[i + 3], early)
    end
    if row[1] == 1 then known[id] = true end
    reply[#reply + 1] = row
    if row[1] ~= 1 and fresh[attr(meta, 'p') or ''] then ended[#ended + 1] = i end
  end
  flush()
  -- A child that is not taken in (finished before, or its unique key is held) counts as ended; its parent, which may come
  -- later in the batch, is written by now.
  for k = 1, #ended do
    local id, meta = args[ended[k]], metas[ended[k]]
    local parent = attr(meta, 'p')
    if not (early[parent] and early[parent][id]) then
      call('HSET', P .. 'children', parent .. '\n' .. id, 1)
      local outcome = call('SISMEMBER', P .. 'ghosts', id) == 1 and 'gone' or 'done'
      child_ended(P, now, parent, id, attr(meta, 'f') or 'w', outcome, nil)
    end
  end
  return reply
end

--[[ add: jobs with ids chosen by the caller, with delay, unique key or children. The call of other languages.
  ARGV n, then n times: id, lane, due (Unix ms; 0 = now; +n = n ms from now on Redis's clock), envelope.
  Returns per job {1, id} accepted, followed by the numbers of the ends that this brought (jobs that it replaced);
  {0, id} known before; {2, holder} its unique key is held. ]]
register('add', {}, function(keys, args)
  return accept_many(keys[1], args, 1)
end)

--[[ add_fenced: the same for effects of a leader. ARGV term, then as add. A term below the highest seen is refused. ]]
register('add_fenced', {}, function(keys, args)
  local P = keys[1]
  local term, seen = tonumber(args[1]), tonumber(call('GET', P .. 'term') or 0)
  if term < seen then
    count(P, 'fenced', 1)
    return redis.error_reply(string.format('QTERM term %.0f is over, %.0f has begun', term, seen))
  end
  if term > seen then call('SET', P .. 'term', args[1]) end
  return accept_many(P, args, 2)
end)

local function encode(text)
  return (string.gsub(text, '[^%w%._%-]', function(c) return string.format('%%%02X', string.byte(c)) end))
end

local function base36(n)
  local digits, out = '0123456789abcdefghijklmnopqrstuvwxyz', ''
  repeat
    local d = n % 36
    out = string.sub(digits, d + 1, d + 1) .. out
    n = (n - d) / 36
  until n == 0
  return out
end

local OPTIONS = {
  priority = 'number', delay_ms = 'number', at_ms = 'number', unique_ttl_ms = 'number', tenant = 'string', key = 'string',
  unique = 'string', unique_mode = 'string', traceparent = 'string',
}

-- The options of submit, or nil and what is wrong. An option that is null is not given. Nothing is guessed or passed over:
-- a misspelt delay would run at once.
local function options_of(text)
  local ok, given = pcall(cjson.decode, text)
  if not ok or type(given) ~= 'table' or not string.find(text, '^%s*{') then return nil, 'options: not a JSON object' end
  local o = {}
  for name, value in pairs(given) do
    local wanted = OPTIONS[name]
    if not wanted then
      return nil, 'option ' .. string.sub(tostring(name), 1, 64) .. ': not known; expected priority, delay_ms, at_ms, tenant, '
        .. 'key, unique, unique_mode, unique_ttl_ms or traceparent'
    end
    if value ~= cjson.null then
      if type(value) ~= wanted then return nil, name .. ': a ' .. wanted end
      if wanted == 'number' and not is_whole(value) then return nil, name .. ': a whole number from 0 to 2^53' end
      o[name] = value
    end
  end
  for name, most in pairs({ tenant = 64, key = 64, unique = 256, traceparent = 256 }) do
    local value = o[name]
    if value and not is_utf8(value) then return nil, name .. ': not UTF-8' end
    -- Tenant and key are part of a lane's name, where they are encoded.
    if value and #(most == 64 and encode(value) or value) > most then
      return nil, string.format('%s: at most %d bytes%s', name, most, most == 64 and ' once percent-encoded' or '')
    end
  end
  if o.unique == '' then return nil, 'unique: not empty' end
  if not o.unique and (o.unique_mode or o.unique_ttl_ms) then return nil, 'unique_mode, unique_ttl_ms: nothing without unique' end
  if o.unique_mode == 'throttle' and (o.unique_ttl_ms or 0) == 0 then return nil, 'unique_ttl_ms: throttle needs one' end
  return o
end

-- Stricter than the shared decoder, which takes NaN, Infinity and 0x10: no kind would. Made when first needed, as there is
-- none while the library loads.
local strict

local function is_json(text)
  if not strict then
    strict = cjson.new and cjson.new() or cjson
    if cjson.new then strict.decode_invalid_numbers(false) end
  end
  return (pcall(strict.decode, text))
end

--[[ submit: one job from any language, with readable options; the envelope is built here.
  ARGV id, kind, payload (JSON), options (JSON object or absent): priority 0..10, delay_ms, at_ms, tenant, key,
  unique, unique_mode (reject, throttle, replace, latest), unique_ttl_ms, traceparent.
  Returns as one row of add, without the numbers. ]]
register('submit', {}, function(keys, args)
  local P = keys[1]
  local queue = queue_of(P)
  if not queue then return redis.error_reply(BAD_KEY) end
  if #args < 3 or #args > 4 then return redis.error_reply('QBAD expected id, kind, payload and optional options') end
  local refused = refusal(P)
  if refused then return refused end
  local id, kind, payload = args[1], args[2], args[3]
  if not string.find(kind, '^[%w%._%-:]+$') or #kind > 128 then
    return redis.error_reply('QBAD kind: 1 to 128 letters, digits, dots, dashes, colons or underscores')
  end
  if #payload > PAYLOAD_MAX then return redis.error_reply('QBAD payload: at most 1 MiB of JSON') end
  if not is_utf8(payload) then return redis.error_reply('QBAD payload: not UTF-8') end
  if not is_json(payload) then return redis.error_reply('QBAD payload: not JSON') end
  local o, wrong_option = options_of(args[4] or '{}')
  if not o then return redis.error_reply('QBAD ' .. wrong_option) end
  local now = now_ms()
  local prio = o.priority or 0
  if prio > 10 then return redis.error_reply('QBAD priority: a whole number from 0 to 10') end
  local due = o.at_ms or 0
  if o.delay_ms then due = now + o.delay_ms end
  local lane = string.format('%d|%s|%s', prio, encode(o.tenant or ''), encode(o.key or ''))
  local meta = base36(now)
  if o.traceparent then meta = meta .. ' t=' .. encode(o.traceparent) end
  if o.unique then
    local mode = ({ reject = 'r', throttle = 't', replace = 'x', latest = 'l' })[o.unique_mode or 'reject']
    if not mode then return redis.error_reply('QBAD unique_mode: reject, throttle, replace or latest') end
    meta = meta .. ' u=' .. mode .. string.format('%.0f', o.unique_ttl_ms or 0) .. ':' .. encode(o.unique)
  end
  local envelope = lane .. '\n' .. kind .. '\n' .. meta .. '\n' .. payload
  local wrong = fault(id, lane, due, envelope)
  if wrong then return redis.error_reply(wrong) end
  list_queue(P, queue)
  local row = accept_one(P, now, id, lane, due, envelope, {})
  return { row[1], row[2] }
end)
