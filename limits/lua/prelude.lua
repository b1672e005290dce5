-- Shared locals: put in front of every script by limits/scripts.py, with only the functions that the script reaches.
--
-- Binary layouts (little endian; amounts in meter steps, times in Unix ms; see limits/README.md "Key schema"):
--   policy  ARGV[1] of every script: i8 clock offset ms, I4 re-assertion wait ms, I4 amnesty ms,
--           I8 outbox age max ms, I4 outbox entries max
--   meta    field m: c16 stamp, I6 rev, I6 seq (watermark), I6 turn ms, I6 period ms, I6 due ms, I4 group, I4 open holds,
--           I4 budget buckets; when seqs are kept above the watermark also I4 count, I6 lowest, I6 highest
--   wallet  field w<wallet>: I6 warned period ms, I2 warned permille, then grants in burn order, 54 bytes each:
--           "\255G", I4 number, i8 amount, i8 counted, i8 pending, i8 held, I6 starts ms, I6 expires ms, i4 priority
--   bucket  field b<number / 8>: budgets, 34 bytes each: I4 number, I6 starts ms, i8 counted, i8 pending, i8 held
--   scope   field s<kind><id>: I4 live holds, then windows, 19 bytes each: B code, I4 length s, I6 starts ms, i8 used
--   hold    field h<id>: I2 version, B flags (1 = first byte told), I8 created ms, I4 lease ms, I8 lease end ms,
--           B takes, B windows; takes of I4 number, I8 amount, B wallet index; window starts of I4 (ms mod 2^32); tail
--   tail    B blocks, values of I8 (4 a block); B wallets of (B name, B abandon, B amount); B budgets, B buckets,
--           budgets of (I4 number, I6 starts ms, B amount, B abandon, B bucket index); B scopes of (B field,
--           B flags: 128 = counts live holds, else number of windows, windows of (B code, I4 length s, B amount)); note.
--           "B name" is a length byte and the text; amounts and abandons are indices into the values, from 1
--   vector  B wallets of (B name, B lines of (I4 number, i8 amount)); B budgets of (I4 number, I6 starts ms, i8 amount)
--   mark    field p<id>: B state (1 lapsed, 2 settled), B entry id, vector
--   charge  value of an outbox entry: B state, c16 hold id, B account, I2 vector length, vector, payload

local AMOUNT_MAX = 9007199254740991

local META, KEPT = '<c16I6I6I6I6I6I4I4I4', '<I4I6I6'
local STAMP, REV, SEQ, TURN, PERIOD, DUE, GROUP, HOLDS, BUCKETS, KEPT_COUNT, KEPT_LOW, KEPT_TOP =
  1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12
local NO_STAMP = '................'

local EMPTY_WALLET, EMPTY_SCOPE = '\0\0\0\0\0\0\0\0', '\0\0\0\0'
local HOLD = '<I2BI8I4I8BB'
local LAPSED, SETTLED = 1, 2

-- The lease index is one sorted set. Its scores, lowest first: the record, the beat, the count of account numbers,
-- accounts by the time of their earliest lease, then holds by account number and lease end in units of 256 ms.
local RECORD_AT, BEAT_AT, NUMBER_AT, ACCOUNT_AT = -9e15, -8e15, -7e15, -6e15

local EPOCH_MS, UNIT_MS, GROUP_SPAN, GROUPS = 1767225600000, 256, 4294967296, 2097152

local OFFSET_MS, WAIT_MS, AMNESTY_MS, OUTBOX_AGE_MS, OUTBOX_MAX = struct.unpack('<i8I4I4I8I4', ARGV[1])
local now -- ms, server clock plus the test offset
local names, vals, dirty -- fields of the account in use: their names, their values (false = absent), which ones changed

-- Stop before anything is written: the caller broke the contract.
local function reject(what)
  error({err = 'LIMITS ' .. what})
end

-- Server time, ms.
local function read_clock()
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000) + OFFSET_MS
end

-- Make the partition's record, and the placeholders that keep every declared key in existence.
local function new_record(leases, outbox, old, info)
  local stamp = string.sub(string.match(info, 'master_replid:(%x+)'), 1, 16)
  local record = '!' .. stamp .. ':' .. string.format('%.0f', now)
  if old and string.byte(old) == 33 then
    redis.call('ZREM', leases, old)
  end
  redis.call('ZADD', leases, RECORD_AT + now + AMNESTY_MS, record, BEAT_AT + now, 'b')
  redis.call('ZADD', leases, 'NX', NUMBER_AT, 'n')
  if redis.call('EXISTS', outbox) == 0 then
    redis.call('XDEL', outbox, redis.call('XADD', outbox, '0-1', 'c', ''))
  end
  return stamp, string.sub(record, 2)
end

-- This Redis' incarnation: the stamp that live accounts carry, and the partition's record "<stamp>:<creation ms>".
local function incarnation(leases, outbox)
  local info = redis.call('INFO', 'replication')
  local record = redis.call('ZRANGE', leases, 0, 0)[1]
  if record then
    local stamp = string.sub(record, 2, 17)
    if string.byte(record) == 33 and string.find(info, 'master_replid:' .. stamp, 1, true) then
      return stamp, string.sub(record, 2)
    end
  end
  return new_record(leases, outbox, record, info)
end

-- Until when the partition waits for re-assertions, ms; 0 = it does not.
local function warming_until(record)
  local until_ms = tonumber(string.sub(record, 18)) + WAIT_MS
  return now < until_ms and until_ms or 0
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

-- The ticket of a stale account: the first nonce that found it so in this incarnation.
local function ticket_of(account, stamp, nonce)
  local ticket = redis.call('HGET', account, 't')
  if ticket and string.sub(ticket, 1, 16) == stamp then
    return string.sub(ticket, 17)
  end
  redis.call('HSET', account, 't', stamp .. nonce)
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

-- counted, pending and held of a record, after a change.
local function sums(packed, at, counted, pending, held)
  local c, p, h = struct.unpack('<i8i8i8', packed, at)
  c, p, h = c + counted, p + pending, h + held
  if c + p > AMOUNT_MAX or h > AMOUNT_MAX then
    reject('a sum is out of range')
  end
  return struct.pack('<i8i8i8', c, p, h)
end

-- Change one grant of a wallet; key is its 4-byte number. One that is not known becomes a placeholder: amount 0, never open.
local function bump_grant(packed, key, counted, pending, held, create)
  key = '\255G' .. key
  packed = packed or EMPTY_WALLET
  local at = find_record(packed, key, 9, 54)
  if at then
    return string.sub(packed, 1, at + 13) .. sums(packed, at + 14, counted, pending, held) .. string.sub(packed, at + 38)
  elseif create then
    return packed .. key .. struct.pack('<i8i8i8i8I6I6i4', 0, counted, pending, held, 0, 1, 0)
  end
  return packed
end

-- Change one budget period; key is its 4-byte number and 6-byte start.
local function bump_budget(packed, key, counted, pending, held, create)
  packed = packed or ''
  local at = find_record(packed, key, 1, 34)
  if at then
    return string.sub(packed, 1, at + 9) .. sums(packed, at + 10, counted, pending, held) .. string.sub(packed, at + 34)
  elseif create then
    return packed .. key .. struct.pack('<i8i8i8', counted, pending, held)
  end
  return packed
end

-- Whether a bucket knows a later period of this budget.
local function has_later(packed, key)
  local number, starts = string.sub(key, 1, 4), struct.unpack('<I6', key, 5)
  for at = 1, #packed, 34 do
    if string.sub(packed, at, at + 3) == number and struct.unpack('<I6', packed, at + 4) > starts then
      return true
    end
  end
  return false
end

-- Drop a bucket's periods that have a later one and owe nothing.
local function compact_bucket(packed)
  local kept = ''
  for at = 1, #packed, 34 do
    local pending, held = struct.unpack('<i8i8', packed, at + 18)
    if pending ~= 0 or held ~= 0 or not has_later(packed, string.sub(packed, at, at + 9)) then
      kept = kept .. string.sub(packed, at, at + 33)
    end
  end
  return kept
end

local function bucket_name(key)
  return 'b' .. math.floor(struct.unpack('<I4', key) / 8)
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

local function know_bucket(meta, key)
  meta[BUCKETS] = math.max(meta[BUCKETS], math.floor(struct.unpack('<I4', key) / 8) + 1)
end

-- Add a vector, times a sign, to counted and to pending. Placeholders only for what raises pending.
local function add_vector(account, meta, vector, at, counted, pending)
  local wallets, lines, name, index, budgets, key, amount
  wallets, at = struct.unpack('<B', vector, at)
  for _ = 1, wallets do
    name, lines, at = struct.unpack('<Bc0B', vector, at)
    index = locate(account, 'w' .. name)
    for _ = 1, lines do
      key, amount, at = struct.unpack('<c4i8', vector, at)
      if not vals[index] and pending > 0 then
        know_wallet(account, name)
      end
      if vals[index] or pending > 0 then
        vals[index] = bump_grant(vals[index], key, counted * amount, pending * amount, 0, pending > 0)
        dirty[index] = true
      end
    end
  end
  budgets, at = struct.unpack('<B', vector, at)
  for _ = 1, budgets do
    key, amount, at = struct.unpack('<c10i8', vector, at)
    index = locate(account, bucket_name(key))
    local packed = vals[index] or ''
    -- A loaded account's missing period is a known zero; one with a later period is over and needs no count.
    local create = pending > 0 or (counted > 0 and not has_later(packed, key))
    packed = bump_budget(packed, key, counted * amount, pending * amount, 0, create)
    if create then
      know_bucket(meta, key)
    end
    vals[index], dirty[index] = pending < 0 and compact_bucket(packed) or packed, true
  end
end

-- Move the watermark over the deltas kept above it, as long as there is no gap.
local function absorb(account, meta)
  while meta[KEPT_COUNT] > 0 and redis.call('HDEL', account, 'k' .. string.format('%.0f', meta[SEQ] + 1)) == 1 do
    meta[SEQ], meta[KEPT_COUNT] = meta[SEQ] + 1, meta[KEPT_COUNT] - 1
  end
end
