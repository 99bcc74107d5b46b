--[[ base.lua: words that every function below shares.

  KEYS[1] of every function is the queue's prefix P = voiceai:queue:{<queue>}: ; every other key is P with a suffix, so
  all of a queue lives in one Cluster slot. Suffixes:

    jobs      HASH id -> envelope; '' marks a cancelled job still in its lane, or a finished id that is remembered
    later     HASH id -> envelope of a job accepted for a later time, until that time comes: a million of them then
              neither slow nor swell the hash of those that are worked on
    lane:<l>  LIST of ids, next at the tail; <l> = <priority>|<tenant>|<key>
    ready     ZSET lane -> (15 - priority) * 2^40 + turn; lanes that have work and that nothing holds back
    suspect   ZSET, same scores; lanes of jobs that lost a worker, each served one job at a time per worker
    held      ZSET lane -> ms at which it may go on, +inf while it waits for a slot;  held:<key> SET of such lanes
    slot:<k>  SET of running ids under limit key <k>
    delayed   ZSET id -> due ms; +inf while a job waits for another
    active    HASH id -> token [\n lane]; field '' is padding that keeps the hash out of the listpack encoding
    workers   ZSET incarnation -> end of its lease, Redis time in ms;  info HASH incarnation -> JSON
    gone      HASH incarnation -> '<ms> clean|crash <suspect id>';  blame HASH incarnation -> its suspect's id
    dead      ZSET id -> ms;  fail HASH id -> failure record;  crashes HASH id -> count;  nohandler HASH id -> kind
    ghosts    SET of ids cancelled while they waited in a lane
    finished  ZSET remembered id -> forget at ms;  result HASH id -> JSON;  results ZSET id -> finished ms
    unique    HASH key -> '<id> <expires ms>', key\n -> '<id> <due ms>' of the job that waits for the holder
    children  HASH parent -> children left, parent\n -> its due ms, parent\nchild -> 1, or 0 while the parent is not there yet;
              kids:<parent> HASH child -> result;  early:<parent> HASH child -> how it ended before its parent came, a day
    ends      HASH number -> an end that a function here decided, until it stands in the history
    producers HASH nonce -> '<last counter> <ms>';  cancel HASH running id -> reason;  progress HASH id -> text
    rate      HASH limit key ('' = the queue) -> 't n t n ...', starts within the period
    cfg, n, pulse, term, wake, log:<id>: settings, counters, sweep times, leader's term, wake marker, log lines
]]
-- Bound at the start of each function: redis.call does not exist while the library loads.
local call
local BAND = 1099511627776
local CHUNK = 2000
local INF = '+inf'
local DAY = 86400000
-- Ends that may wait for the history; then the oldest is dropped and counted. Retention waits long before.
local ENDS_MAX = 100000
local ENDS_WAIT = 10000
local PADDING = '------------------------------------------------------------------------'

-- Numbers of the ends that this call has noted.
local noted = {}

local function register(name, flags, body)
  redis.register_function({
    function_name = 'voiceai_v1_' .. name,
    flags = flags,
    callback = function(keys, args)
      call = redis.call
      noted = {}
      return body(keys, args)
    end,
  })
end

local function now_ms()
  local t = call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- unpack() fails above about 7,999 values, so every variadic call goes through here: for the whole list, or from..to of it.
local function chunked(list, f, from, to)
  local n, i = to or #list, from or 1
  while i <= n do
    local j = i + CHUNK - 1
    if j > n then j = n end
    f(i, j)
    i = j + 1
  end
end

-- An envelope that was written by hand and has no lane is served as a plain job: its worker parks it.
local function lane_of(envelope)
  return string.match(envelope, '^(%d%d?|[^|\n]*|[^|\n]*)\n') or '0||'
end

local function header(envelope)
  return string.match(envelope, '^([^\n]*)\n([^\n]*)\n([^\n]*)\n')
end

local function attr(meta, name)
  return string.match(meta, ' ' .. name .. '=([^ ]*)')
end

local function key_of(lane)
  return string.match(lane, '^%d+|[^|]*|(.*)$') or ''
end

-- The limit key of a lane: a suspect's lane counts against the key of its ordinary one.
local function limit_key(key)
  if string.sub(key, 1, 1) == '~' then return string.sub(key, 2) end
  return key
end

local function ring_of(P, key)
  if string.sub(key, 1, 1) == '~' then return P .. 'suspect' end
  return P .. 'ready'
end

local function suspect_lane(lane)
  local head, key = string.match(lane, '^(%d+|[^|]*|)(.*)$')
  if string.sub(key, 1, 1) == '~' then return lane end
  return head .. '~' .. key
end

-- Puts a lane that has work into its ring. A held lane stays held: its release offers it again.
local function offer(P, lane)
  local ring = ring_of(P, key_of(lane))
  if call('ZSCORE', ring, lane) then return end
  if call('ZSCORE', P .. 'held', lane) then return end
  local base = (15 - tonumber(string.match(lane, '^%d+'))) * BAND
  -- A lane that joins takes the lowest turn of its band: it neither waits for the others' past nor passes them all.
  local first = call('ZRANGEBYSCORE', ring, base, base + BAND - 1, 'WITHSCORES', 'LIMIT', 0, 1)
  call('ZADD', ring, first[2] or base, lane)
end

local function wake(P)
  call('ZADD', P .. 'wake', 0, 'w')
end

local function count(P, name, by)
  if by > 0 then call('HINCRBY', P .. 'n', name, by) end
end

--[[ Notes an end that is decided here and not by a worker that runs the job: it is written to the history by whoever made
  the call, or a little later by a worker's heart, and only then removed. `ending` is the history's word, a colon before a
  reason of death; `whole` a record that is complete already. An entry is a line of the ending, the time and the lengths of
  id, note and failure record, then those and the envelope without anything between; or 'record' and a line break before a
  complete one. ]]
local function note_end(P, now, id, envelope, ending, note, whole)
  local number = call('HINCRBY', P .. 'pulse', 'ends', 1)
  local entry
  if whole and whole ~= '' then
    entry = 'record\n' .. whole
  else
    local fail = call('HGET', P .. 'fail', id) or ''
    entry = string.format('%s %.0f %d %d %d\n', ending, now, #id, #note, #fail) .. id .. note .. fail .. envelope
  end
  call('HSET', P .. 'ends', number, entry)
  noted[#noted + 1] = number
  if number > ENDS_MAX and call('HDEL', P .. 'ends', number - ENDS_MAX) == 1 then count(P, 'ends_dropped', 1) end
end

-- A job's envelope, wherever it is kept: '' where only a mark is left, false where the id is not known.
local function envelope_of(P, id)
  return call('HGET', P .. 'jobs', id) or call('HGET', P .. 'later', id)
end

local function drop_envelope(P, id)
  if call('HDEL', P .. 'jobs', id) == 0 then call('HDEL', P .. 'later', id) end
end

-- Before a job that stood in `delayed` goes to a lane.
local function fetch_envelope(P, id, envelope)
  if call('HDEL', P .. 'later', id) == 1 then call('HSET', P .. 'jobs', id, envelope) end
end

local function enqueue_tail(P, lane, id)
  call('LPUSH', P .. 'lane:' .. lane, id)
  offer(P, lane)
end

local function enqueue_head(P, lane, id)
  call('RPUSH', P .. 'lane:' .. lane, id)
  offer(P, lane)
end

-- A new due time wakes a worker only when it is the earliest: sleepers know the earliest one they were told.
local function delay(P, id, due)
  local first = call('ZRANGE', P .. 'delayed', 0, 0, 'WITHSCORES')
  call('ZADD', P .. 'delayed', due, id)
  if due ~= INF and (not first[2] or due < tonumber(first[2])) then wake(P) end
end
