-- SQL has these charges of an account: drop their pending marks and outbox entries, count their deltas, each once.
--
-- Flags: allow-oom
-- Seldom: new_meta bump_listed read_vector know_wallet find_period add_period free_hold
-- KEYS  1 the account (hash)  2 the partition's outbox (stream)  3 the partition's lease index (sorted set)
-- ARGV  1 policy (packed, see prelude.lua)
--       2 the charges, packed: c16 hold id, B state that SQL has (1 lapsed, 2 settled), I4 length of its deltas in bytes;
--         deltas in order of seq: I8 seq, I2 vector length, vector, then coded lines (as settle's). No hold comes twice.
--       3… fields of the account (strings): m, then those that the deltas live in
-- Example  one charge, settled, seq 12, +1,250 on grant 7: pending 1,250 → 0, counted + 1,250, watermark 11 → 12
-- Effect, for each charge
--   * Unless a later state is pending: the mark and its outbox entry are dropped. Settled: the hold is dropped too.
--   * A delta is counted if its seq is neither at or below the watermark nor in the set above it. The set keeps its
--     deltas; the watermark moves over them, and rests while the account is stale.
--   * Without a mark, old entries of this charge are dropped from the outbox: an account's hash was removed by hand.
-- Reply  integer: the watermark
assert(#KEYS == 3 and #ARGV >= 3, 'confirm: 3 keys, 3 arguments or more')

local ORPHAN_AGE_MS, ORPHANS_MAX = 5000, 32

local confirms, ids, states, firsts, ends = ARGV[2], {}, {}, {}, {}
read_clock()
local stamp = incarnation(KEYS[3], KEYS[2])
local wanted, at = {'m'}, 1
while at <= #confirms do
  local n, length = #ids + 1, nil
  ids[n], states[n], length, firsts[n] = struct.unpack('<c16BI4', confirms, at)
  at = firsts[n] + length
  ends[n], wanted[2 * n], wanted[2 * n + 1] = at, 'h' .. ids[n], 'p' .. ids[n]
end
local found = redis.call('HMGET', KEYS[1], unpack(wanted))
local meta = found[1] and read_meta(found[1]) or new_meta(KEYS[3])
local fresh = meta[STAMP] == stamp
for n = 1, #ids do
  if found[2 * n] and states[n] == SETTLED then
    -- Its settle never came here. Windows stay as reserved: what they really took is not known.
    free_hold(KEYS[1], KEYS[3], meta, ids[n], found[2 * n], nil)
    redis.call('HSET', KEYS[1], 'm', pack_meta(meta)) -- it is over whatever becomes of its deltas
  end
end

use_fields(KEYS[1], {unpack(ARGV, 3)})
local kept, marks, entries, orphans = {}, {}, {}, nil
for n = 1, #ids do
  local state, mark, marked = states[n], found[2 * n + 1], nil
  if not mark then
    orphans = orphans or {}
    orphans[ids[n]] = state
  elseif string.byte(mark) <= state then
    local entry = string.sub(mark, 3, 2 + string.byte(mark, 2))
    marks[#marks + 1], entries[#entries + 1], marked = wanted[2 * n + 1], entry, string.sub(mark, 3 + #entry)
  end
  at = firsts[n]
  while at < ends[n] do
    local seq, length, first = struct.unpack('<I8I2', confirms, at)
    local field = 'k' .. string.format('%.0f', seq)
    local known = seq <= meta[SEQ] or (meta[KEPT_COUNT] > 0 and redis.call('HEXISTS', KEYS[1], field) == 1)
    local lines, periods
    lines, periods, at = read_lines(confirms, first + length)
    if not known then
      local vector = string.sub(confirms, first, first + length - 1)
      local pending = vector == marked and -1 or 0 -- the usual way: what was pending is what SQL counts
      marked = pending == 0 and marked or nil
      add_vector(KEYS[1], meta, lines, periods, 1, pending)
      if fresh and seq == meta[SEQ] + 1 then
        meta[SEQ] = seq
      else
        kept[#kept + 1], kept[#kept + 2] = field, vector
        meta[KEPT_LOW] = meta[KEPT_COUNT] == 0 and seq or math.min(meta[KEPT_LOW], seq)
        meta[KEPT_TOP] = meta[KEPT_COUNT] == 0 and seq or math.max(meta[KEPT_TOP], seq)
        meta[KEPT_COUNT] = meta[KEPT_COUNT] + 1
      end
    end
  end
  if marked then
    local lines, periods = read_vector(KEYS[1], marked)
    add_vector(KEYS[1], meta, lines, periods, 0, -1)
  end
end
-- From here on only writes.
if #kept > 0 then
  redis.call('HSET', KEYS[1], unpack(kept))
end
if fresh then
  absorb(KEYS[1], meta)
end
vals[1], dirty[1] = pack_meta(meta), true
write_fields(KEYS[1])
if #marks > 0 then
  redis.call('HDEL', KEYS[1], unpack(marks))
  redis.call('XDEL', KEYS[2], unpack(entries))
end
if orphans then
  local old = redis.call('XRANGE', KEYS[2], '-', string.format('%.0f', now - ORPHAN_AGE_MS), 'COUNT', ORPHANS_MAX)
  for index = 1, #old do
    local charge = old[index][2][2]
    local state = orphans[string.sub(charge, 2, 17)]
    if state and string.byte(charge) <= state then
      redis.call('XDEL', KEYS[2], old[index][1])
    end
  end
end
return meta[SEQ]
