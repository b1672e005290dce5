-- End a hold with its charge: free what was held, mark the charge pending, and append it to the outbox.
--
-- Flags: allow-oom
-- Seldom: record_of new_meta bump_listed read_vector know_wallet find_period add_period has_later
-- KEYS  1 the account (hash)  2 the partition's outbox (stream)  3 the partition's lease index (sorted set)
-- ARGV  1 policy (packed, see prelude.lua)
--       2 hold id (16 bytes, string)
--       3 the charge as it goes into the outbox (packed bytes, see prelude.lua)
--       4 position of the charge's vector in it (number, from 1)
--       5 what each window really took, in the hold's order: I8 or -1 = as reserved (packed; "" = all as reserved)
--       6 the vector once more as coded lines, packed: B lines of (B field from 1, I4 number, i8 amount in steps);
--         B budgets of (B field, I4 number, I6 start ms, i8 amount)
--       7 fields of the account: m, h<hold id>, p<hold id>, the slots' fields in the tail's order, others of the charge
-- Example  a hold of 4,000 steps on grant 7, charged 1,250: held 4,000 → 0, pending 0 → 1,250, one outbox entry
-- Effect
--   * One path, whether the account is stale, absent or live and whether the hold is known: the charge is never refused.
--   * Pending rises on the grants and budgets of the charge; what Redis does not know becomes a placeholder.
--   * A pending lapse of the same hold is replaced. A pending settle of it: nothing changes but that the hold is freed.
-- Reply (one string)  "E", B known (1 = Redis had the hold), I8 now ms; of an unknown hold also the partition's record
assert(#KEYS == 3 and #ARGV >= 9, 'settle: 3 keys, 9 arguments or more')

local id, charge, at = ARGV[2], ARGV[3], tonumber(ARGV[4])
read_clock()
use_fields(KEYS[1], {unpack(ARGV, 7)})
local hold, mark, record = vals[2], vals[3], ''
if not hold then -- has Redis forgotten it?
  record = record_of(KEYS[3], KEYS[2])
end
local meta = vals[1] and read_meta(vals[1]) or new_meta(KEYS[3])
local settled = mark and string.byte(mark) == SETTLED
local replaced = mark and not settled and string.sub(mark, 3, 2 + string.byte(mark, 2))
if replaced then
  local lines, periods = read_vector(KEYS[1], string.sub(mark, 3 + #replaced))
  add_vector(KEYS[1], meta, lines, periods, 0, -1)
end
local lines, periods = {}, {}
if not settled then
  lines, periods = read_lines(ARGV[6], 1)
end
if hold then
  local windows = #ARGV[5] / 8
  local actuals = windows > 0 and {struct.unpack('<' .. string.rep('i8', windows), ARGV[5])} or nil
  move_hold(KEYS[1], meta, hold, 3, -1, actuals, lines, periods)
  meta[HOLDS] = meta[HOLDS] - 1
end
if not settled then
  add_vector(KEYS[1], meta, lines, periods, 0, 1)
  -- From here on only writes; the outbox first.
  local entry = append(KEYS[2], charge)
  if replaced then
    redis.call('XDEL', KEYS[2], replaced)
  end
  local length = struct.unpack('<I2', charge, at - 2)
  vals[3] = struct.pack('<BBc0', SETTLED, #entry, entry) .. string.sub(charge, at, at + length - 1)
  dirty[3] = true
end
vals[1], dirty[1] = pack_meta(meta), true
write_fields(KEYS[1])
if hold then
  redis.call('HDEL', KEYS[1], names[2])
  redis.call('ZREM', KEYS[3], names[2])
end
return 'E' .. string.char(hold and 1 or 0) .. struct.pack('<I8', now) .. record
