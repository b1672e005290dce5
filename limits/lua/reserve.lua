-- Admit one call: check its demand against every wallet, budget, window and concurrency, and take all of it or nothing.
--
-- Flags: none
-- Seldom: lapse_due ticket_of sum_up take_listed check_warnings find_period add_period has_later refuse_window
-- KEYS  1 the account (hash)  2 the partition's outbox (stream)  3 the partition's lease index (sorted set)
-- ARGV  1 policy (packed, see prelude.lua)
--       2 the call, packed: c16 hold id, I8 rev, I4 lease ms (0 = dry: nothing is taken), I8 deadline ms (0 = none), then
--         I2 per warning threshold
--       3 tail: the demand's slots with their amounts in steps, then the note (packed bytes, stored with the hold)
--       4 limits of these slots, packed (see prelude_demand.lua)
--       5 ticket: a nonce (string), kept if the account is found stale
--       6 idempotency key (string), reserved
--       7 fields of the account: m, h<hold id>, then the slots' fields in the tail's order
-- Example  1 wallet "tokens", 4,000 steps, no limits: EVALSHA … 3 {p017}:a:acme {p017}:o {p017}:l POLICY CALL TAIL
--       LIMITS 9f86d081884c7d65 "" m h… wtokens → "R…" with one take (grant 7, 4,000 steps)
-- Effect
--   * Frees at most 4 dead leases of this account first.
--   * Takes every amount: held of grants in burn order, held of budgets, used of windows, one live hold per scope.
--   * Stores the hold, its lease in the index, and warnings reported (those also when refused). Nothing on refusal.
--   * The same hold again: nothing is taken, the same reply. Another demand under an open hold's id is an error.
-- Reply (one string; numbers packed)
--   R I8 now, I8 created, I2 version, B takes …, B wallets of (i8 available, I8 capacity, I6 resets),
--     B windows of (I8 remaining, I8 start), B crossed of (B wallet, I2 permille), record
--   F refused: B verdict, slot letter, B slot index, i8 limit, used, held, needed, available, I8 resets, I8 now, crossed
--   L I8 now: the deadline passed   S ticket: stale   W I8 until, I8 now, record: warming
--   A I8 rev: reauth   T I8 turn, I8 now: the period is over   O I8 entries: the outbox is too full or too old
assert(#KEYS == 3 and #ARGV >= 8, 'reserve: 3 keys, 8 arguments or more')

local LAPSES_MAX = 4
local id, rev, lease_ms, deadline, at = struct.unpack('<c16I8I4I8', ARGV[2])
local tail, limits = ARGV[3], ARGV[4]
thresholds = string.sub(ARGV[2], at)
read_clock()
if deadline > 0 and now > deadline then
  return 'L' .. struct.pack('<I8', now)
end

local stamp, record = incarnation(KEYS[3], KEYS[2])
use_fields(KEYS[1], {unpack(ARGV, 7)})
account_meta = vals[1] and read_meta(vals[1])
if not account_meta or account_meta[STAMP] ~= stamp then
  return 'S' .. ticket_of(KEYS[1], stamp, ARGV[5])
end
local warming = warming_until(record)
if warming > 0 then
  return 'W' .. struct.pack('<I8I8', warming, now) .. record
end

local hold = vals[2]
if hold then -- a repeat: nothing is taken, the same takes, and the wallets and windows as they are now
  if string.sub(hold, tail_of(hold)) ~= tail then
    reject('another hold has this id')
  end
  extending, thresholds = hold, ''
  check_demand(tail, limits, 2, true)
  local version, created = struct.unpack('<I2xI6', hold)
  takes_count = string.byte(hold, 10)
  taken = string.sub(hold, 12, 11 + 12 * takes_count)
  return reply_to_demand(version, created, record)
end
if account_meta[REV] ~= rev then
  return 'A' .. struct.pack('<I8', account_meta[REV])
end
if account_meta[TURN] > 0 and now >= account_meta[TURN] then
  return 'T' .. struct.pack('<I8I8', account_meta[TURN], now)
end
local entries = redis.call('XLEN', KEYS[2])
if entries > OUTBOX_MAX or
  (entries > 0 and redis.call('XRANGE', KEYS[2], '-', string.format('%.0f', now - OUTBOX_AGE_MS), 'COUNT', 1)[1]) then
  return 'O' .. struct.pack('<I8', entries)
end

if account_meta[DUE] > 0 and now >= account_meta[DUE] then
  lapse_due(KEYS[1], KEYS[2], KEYS[3], account_meta, LAPSES_MAX)
  use_fields(KEYS[1], {unpack(ARGV, 7)})
  account_meta = read_meta(vals[1])
end

check_demand(tail, limits, 2)
if refusal or lease_ms == 0 then
  return reply_to_demand(1, now, record)
end
-- After this point the reserve must succeed.
account_meta[HOLDS] = account_meta[HOLDS] + 1
index_lease(KEYS[1], KEYS[3], account_meta, id, now + lease_ms)
vals[1], dirty[1] = pack_meta(account_meta), true
vals[2] = struct.pack(HOLD, 1, 0, now, takes_count, #remaining / 2) .. taken .. packed_starts() .. tail
dirty[2] = true
write_fields(KEYS[1])
return reply_to_demand(1, now, record)
