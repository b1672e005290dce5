-- Shared locals: put in front of every script by limits/scripts.py, with only the functions that the script reaches.
--
-- Binary layouts (little endian; amounts in meter steps, times in Unix ms; see limits/README.md "Key schema"):
--   policy  ARGV[1] of every script: i8 clock offset ms and I8 a clock that stands still ms (both 0 outside tests),
--           I4 re-assertion wait ms, I4 amnesty ms, I8 outbox age max ms, I4 outbox entries max
--   meta    field m: c16 stamp, I6 rev, I6 seq (watermark), I6 turn ms, I6 period ms, I6 due ms, I4 group, I4 open holds,
--           I4 budget buckets; when seqs are kept above the watermark also I4 count, I6 lowest, I6 highest
--   wallet  field w<wallet>: I6 warned period ms, I2 warned permille; sums over the open grants: I6 valid from ms,
--           I6 valid until ms, i8 capacity, I6 earliest expiry ms (0 = none), i8 posted, i8 held; then the grant that
--           burns now, the first open one with something free: I2 its place in the list (0 = none), I4 number, i8 amount,
--           i8 counted, i8 pending, i8 held (these stand here, not in the list)
--   list    field x<wallet>: every grant in burn order, 54 bytes each: "\255G", I4 number, i8 amount, i8 counted,
--           i8 pending, i8 held, I6 starts ms, I6 expires ms, i4 priority
--   bucket  field b<number / 8>: budgets, 34 bytes each: I4 number, I6 starts ms, i8 counted, i8 pending, i8 held
--   scope   field s<kind><id>: I4 live holds, then windows, 19 bytes each: B code, I4 length s, I6 starts ms, i8 used
--   hold    field h<id>: I2 version, B flags (1 = first byte told), I6 created ms, B takes, B windows; takes of I4 number,
--           I7 amount, B wallet index; window starts of I3 (ms mod 2^24); tail
--   tail    B blocks, values of I6 (4 a block; 128 = wide: I8); B wallets, B budget kinds, B budgets, B buckets, B scopes,
--           B window kinds, B windows; per wallet B abandon, B amount; per budget kind B amount, B abandon, B starts ms;
--           per window kind B code, B length s, B amount; per scope B (128 = counts live holds) + its windows; per bucket
--           I3 number / 8, B budgets, and per budget of it B kind, B number mod 8; per window B kind; names: per wallet
--           B name, per scope its kind's letter, then 16 bytes (capital), nothing (a), or B id; note. "B name" is a
--           length byte and the text; amounts, abandons, starts and lengths are indices into the values, kinds into
--           their lists, from 1. Fields of a hold are in this order: wallets, buckets, scopes.
--   vector  B wallets of (B name, B lines of (I4 number, i8 amount)); B budgets of (I4 number, I6 starts ms, i8 amount)
--   mark    field p<id>: B state (1 lapsed, 2 settled), B entry id, vector
--   charge  value of an outbox entry: B state, c16 hold id, B account, I2 vector length, vector, payload

local AMOUNT_MAX = 9007199254740991

local META, KEPT = '<c16I6I6I6I6I6I4I4I4', '<I4I6I6'

local STAMP, REV, SEQ, TURN, PERIOD, DUE, GROUP, HOLDS, BUCKETS, KEPT_COUNT, KEPT_LOW, KEPT_TOP =
  1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12

local NO_STAMP = '................'

local WALLET, FOREVER = '<I6I2I6I6i8I6i8i8I2I4i8i8i8i8', 281474976710655

local WARNED, LEVEL, FROM, TILL, CAPACITY, RESETS, POSTED, ON_HOLD = 1, 2, 3, 4, 5, 6, 7, 8

local PLACE, NUMBER, AMOUNT, COUNTED, PENDING, HELD_OF_IT = 9, 10, 11, 12, 13, 14

local HOLD, TAKE = '<I2BI6BB', '<I4I7B'

local LAPSED, SETTLED = 1, 2

-- The lease index is one sorted set. Its scores, lowest first: the record, the beat, the count of account numbers,
-- accounts by the time of their earliest lease, then holds by account number and lease end in units of 256 ms.
local RECORD_AT, BEAT_AT, NUMBER_AT, ACCOUNT_AT = -9e15, -8e15, -7e15, -6e15

local EPOCH_MS, UNIT_MS, GROUP_SPAN, GROUPS = 1767225600000, 256, 4294967296, 2097152

local OFFSET_MS, STILL_MS, WAIT_MS, AMNESTY_MS, OUTBOX_AGE_MS, OUTBOX_MAX = struct.unpack('<i8I8I4I4I8I4', ARGV[1])
local now -- ms
local names, vals, dirty -- fields of the account in use: their names, their values (false = absent), which ones changed
local buckets -- those of them that hold budgets, unpacked: flat tables of five values a period

-- Stop before anything is written: the caller broke the contract.
local function reject(what)
  error({err = 'LIMITS ' .. what})
end

-- Server time, ms; in tests moved, or standing still.
local function read_clock()
  if STILL_MS > 0 then
    now = STILL_MS
    return
  end
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000) + OFFSET_MS
end

-- This Redis' incarnation: the stamp that live accounts carry, and the partition's record "<stamp>:<creation ms>". Where
-- there is none, or another incarnation's, it is made, with the placeholders that keep every declared key in existence.
local function incarnation(leases, outbox)
  local info = redis.call('INFO', 'replication')
  local record = redis.call('ZRANGE', leases, 0, 0)[1]
  local ours = record and string.byte(record) == 33
  if ours then
    local stamp = string.sub(record, 2, 17)
    if string.find(info, 'master_replid:' .. stamp, 1, true) then
      return stamp, string.sub(record, 2)
    end
    redis.call('ZREM', leases, record)
  end
  local stamp = string.sub(string.match(info, 'master_replid:(%x+)'), 1, 16)
  record = stamp .. ':' .. string.format('%.0f', now)
  redis.call('ZADD', leases, RECORD_AT + now + AMNESTY_MS, '!' .. record, BEAT_AT + now, 'b')
  redis.call('ZADD', leases, 'NX', NUMBER_AT, 'n')
  if redis.call('EXISTS', outbox) == 0 then
    redis.call('XDEL', outbox, redis.call('XADD', outbox, '0-1', 'c', ''))
  end
  return stamp, record
end

-- The partition's record as it stands, made if there is none. Whether it is of this incarnation is for reserve and renew
-- to find out: INFO costs a tenth of a settle.
local function record_of(leases, outbox)
  local record = redis.call('ZRANGE', leases, 0, 0)[1]
  if record and string.byte(record) == 33 then
    return string.sub(record, 2)
  end
  local _, fresh = incarnation(leases, outbox)
  return fresh
end

-- Until when the partition waits for re-assertions, ms; 0 = it does not (also when the clock has gone back since).
local function warming_until(record)
  local created = tonumber(string.sub(record, 18))
  return now >= created and now < created + WAIT_MS and created + WAIT_MS or 0
end

local function read_meta(packed)
  local meta = {struct.unpack(META, packed)}
  if meta[KEPT_COUNT] <= #packed then
    meta[KEPT_COUNT], meta[KEPT_LOW], meta[KEPT_TOP] = struct.unpack(KEPT, packed, meta[KEPT_COUNT])
  else
    meta[KEPT_COUNT] = 0
  end
  return meta
end

-- Meta of an account that Redis does not know: not loaded, with a number of its own in the lease index.
local function new_meta(leases)
  local number = redis.call('ZINCRBY', leases, 1, 'n') - NUMBER_AT
  return {NO_STAMP, 0, 0, 0, 0, 0, math.fmod(number, GROUPS), 0, 0, 0}
end

local function pack_meta(meta)
  local packed = struct.pack(META, unpack(meta, 1, 9))
  if meta[KEPT_COUNT] > 0 then
    packed = packed .. struct.pack(KEPT, meta[KEPT_COUNT], meta[KEPT_LOW], meta[KEPT_TOP])
  end
  return packed
end

-- The ticket of a stale account: the first nonce that found it so in this incarnation. An empty one is no nonce.
local function ticket_of(account, stamp, nonce)
  local ticket = redis.call('HGET', account, 't')
  if ticket and string.sub(ticket, 1, 16) == stamp then
    return string.sub(ticket, 17)
  end
  if nonce ~= '' then
    redis.call('HSET', account, 't', stamp .. nonce)
  end
  return nonce
end

-- The position of the record that starts with key among records of one size, or nil.
local function find_record(packed, key, first, size)
  local at = string.find(packed, key, first, true)
  while at and (at - first) % size ~= 0 do
    at = string.find(packed, key, at + 1, true)
  end
  return at
end

-- Read fields of an account, to work with.
local function use_fields(account, list)
  names, dirty, buckets = list, {}, {}
  vals = #list > 0 and redis.call('HMGET', account, unpack(list)) or {}
end

-- The index of a field of the account, read when it was not asked for at the start.
local function locate(account, name)
  for index = 1, #names do
    if names[index] == name then
      return index
    end
  end
  local index = #names + 1
  names[index], vals[index] = name, redis.call('HGET', account, name)
  return index
end

-- A wallet that Redis did not know is put on the account's list, which load needs to close what SQL no longer names.
local function know_wallet(account, name)
  local index = locate(account, 'W')
  local list = vals[index] or ''
  vals[index], dirty[index] = list .. string.char(#name) .. name, true
end

-- Move the watermark over the deltas kept above it, as long as there is no gap.
local function absorb(account, meta)
  while meta[KEPT_COUNT] > 0 and redis.call('HDEL', account, 'k' .. string.format('%.0f', meta[SEQ] + 1)) == 1 do
    meta[SEQ], meta[KEPT_COUNT] = meta[SEQ] + 1, meta[KEPT_COUNT] - 1
  end
end
