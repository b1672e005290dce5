-- SQL has a charge: drop its pending mark and its outbox entry, and count its deltas, each once.
--
-- Flags: allow-oom
-- Seldom: new_meta bump_listed read_vector know_wallet find_period add_period has_later free_hold
-- KEYS  1 the account (hash)  2 the partition's outbox (stream)  3 the partition's lease index (sorted set)
-- ARGV  1 policy (packed, see prelude.lua)
--       2 hold id (16 bytes, string)
--       3 state that SQL has (number: 1 lapsed, 2 settled)
--       4 deltas in order of seq: I8 seq, I2 vector length, vector, then coded lines (packed, as settle's)
--       5… fields of the account (strings): m, then those that the deltas live in
-- Example  settled, seq 12, +1,250 on grant 7: pending 1,250 → 0, counted + 1,250, watermark 11 → 12
-- Effect
--   * Unless a later state is pending: the mark and its outbox entry are dropped. Settled: the hold is dropped too.
--   * A delta is counted if its seq is neither at or below the watermark nor in the set above it. The set keeps its
--     deltas; the watermark moves over them, and rests while the account is stale.
--   * Without a mark, old entries of this charge are dropped from the outbox: an account's hash was removed by hand.
-- Reply  integer: the watermark
assert(#KEYS == 3 and #ARGV >= 5, 'confirm: 3 keys, 5 arguments or more')

local ORPHAN_AGE_MS, ORPHANS_MAX = 5000, 32
local id, state, deltas = ARGV[2], tonumber(ARGV[3]), ARGV[4]
read_clock()
local stamp = incarnation(KEYS[3], KEYS[2])
local found = redis.call('HMGET', KEYS[1], 'm', 'h' .. id, 'p' .. id)
local meta = found[1] and read_meta(found[1]) or new_meta(KEYS[3])
local fresh = meta[STAMP] == stamp
local hold, mark = found[2], found[3]
if hold and state == SETTLED then
  -- Its settle never came here. Windows stay as reserved: what they really took is not known.
  free_hold(KEYS[1], KEYS[3], meta, id, hold, nil)
end

use_fields(KEYS[1], {unpack(ARGV, 5)})
local kept = {}
local unmark = mark and string.byte(mark) <= state
local entry = unmark and string.sub(mark, 3, 2 + string.byte(mark, 2))
local marked = unmark and string.sub(mark, 3 + #entry)

local at = 1
while at <= #deltas do
  local seq, length, first = struct.unpack('<I8I2', deltas, at)
  local field = 'k' .. string.format('%.0f', seq)
  local known = seq <= meta[SEQ] or (meta[KEPT_COUNT] > 0 and redis.call('HEXISTS', KEYS[1], field) == 1)
  local amounts, fields, periods
  amounts, fields, periods, at = read_lines(deltas, first + length)
  if not known then
    local vector = string.sub(deltas, first, first + length - 1)
    if vector == marked then -- the usual way: what was pending is what SQL counts
      add_vector(KEYS[1], meta, amounts, fields, periods, 1, -1)
      marked = nil
    else
      add_vector(KEYS[1], meta, amounts, fields, periods, 1, 0)
    end
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
  local amounts, fields, periods = read_vector(KEYS[1], marked)
  add_vector(KEYS[1], meta, amounts, fields, periods, 0, -1)
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
if unmark then
  redis.call('HDEL', KEYS[1], 'p' .. id)
  redis.call('XDEL', KEYS[2], entry)
elseif not mark then
  local old = redis.call('XRANGE', KEYS[2], '-', string.format('%.0f', now - ORPHAN_AGE_MS), 'COUNT', ORPHANS_MAX)
  for index = 1, #old do
    local charge = old[index][2][2]
    if string.sub(charge, 2, 17) == id and string.byte(charge) <= state then
      redis.call('XDEL', KEYS[2], old[index][1])
    end
  end
end
return meta[SEQ]
