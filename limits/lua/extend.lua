-- Grow an open hold: check what it asks for on top against every slot, and take all of that or nothing.
--
-- Flags: none
-- Seldom: sum_up take_listed add_period has_later
-- KEYS  1 the account (hash)  2 the partition's outbox (stream)  3 the partition's lease index (sorted set)
-- ARGV  1 policy (packed, see prelude.lua)
--       2 the hold, packed: c16 hold id, I2 version that the caller has (count)
--       3 tail of what is asked for on top: the hold's slots in its order, amounts in steps (0 = nothing)
--       4 limits of these slots, packed (see prelude_demand.lua)
--       5 tail of the whole: the same slots with the sums, then the note
--       6 ticket: a nonce (string), kept if the account is found stale
--       7 fields of the account: m, h<hold id>, then the slots' fields in the tail's order
-- Example  500 steps more for version 1: "R…" with version 2 and every take of the hold so far
-- Effect
--   * Takes every amount, from the grants in burn order and from the windows of now. Nothing on refusal.
--   * The hold's version grows by one; its lease stays. Repeated for the version before: the same reply, nothing taken.
-- Reply (one string): R, F, S, W as reserve; G: no such open hold, or it grew in another way
assert(#KEYS == 3 and #ARGV >= 8, 'extend: 3 keys, 8 arguments or more')

local id, version = struct.unpack('<c16I2', ARGV[2])
read_clock()
local stamp, record = incarnation(KEYS[3], KEYS[2])
use_fields(KEYS[1], {unpack(ARGV, 7)})
account_meta = vals[1] and read_meta(vals[1])
if not account_meta or account_meta[STAMP] ~= stamp then
  return 'S' .. ticket_of(KEYS[1], stamp, ARGV[6])
end
local warming = warming_until(record)
if warming > 0 then
  return 'W' .. struct.pack('<I8I8', warming, now) .. record
end
local hold = vals[2]
local stored, flags, created, old_takes
if hold then
  stored, flags, created, old_takes = struct.unpack(HOLD, hold)
end
if not hold or version == 65535 or (stored ~= version and stored ~= version + 1) then
  return 'G'
end
extending = hold
if stored == version + 1 then
  if string.sub(hold, tail_of(hold)) ~= ARGV[5] then
    return 'G'
  end
  -- a repeat
  check_demand(ARGV[3], ARGV[4], 2, true)
  takes_count, taken = old_takes, string.sub(hold, 12, 11 + 12 * old_takes)
  return reply_to_demand(stored, created, record)
end

check_demand(ARGV[3], ARGV[4], 2)
if refusal then
  return reply_to_demand(version, created, record)
end
-- After this point the extend must succeed. New takes of a grant that the hold has already are added to it.
local merged = string.sub(hold, 12, 11 + 12 * old_takes)
for at = 1, #taken, 12 do
  local key, amount = string.sub(taken, at, at + 3), struct.unpack('<I7', taken, at + 4)
  local found = find_record(merged, key, 1, 12)
  if found then
    local before = struct.unpack('<I7', merged, found + 4)
    merged = string.sub(merged, 1, found + 3) .. struct.pack('<I7', before + amount) .. string.sub(merged, found + 11)
  else
    merged = merged .. string.sub(taken, at, at + 11)
  end
end
if #merged > 12 * 255 then -- more grants than a hold can name
  return 'G'
end
takes_count, taken = #merged / 12, merged
vals[2] = struct.pack(HOLD, version + 1, flags, created, takes_count, #remaining / 2) .. taken .. packed_starts() .. ARGV[5]
vals[1], dirty[1], dirty[2] = pack_meta(account_meta), true, true
write_fields(KEYS[1])
return reply_to_demand(version + 1, created, record)
