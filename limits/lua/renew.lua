-- Beat a partition and renew live holds: each is an upsert of the whole hold, so that it survives a Redis that forgot it.
--
-- Flags: allow-oom
-- KEYS  1 the partition's outbox (stream)  2 the partition's lease index (sorted set)  3… accounts (hashes)
-- ARGV  1 policy (packed, see prelude.lua)
--       2… per hold, ordered by account: I2 number of the account (from 1), c16 hold id, I4 lease ms, then the
--         hold (packed)
-- Example  a beat: no accounts, no holds → "P…" with the partition's record
-- Effect
--   * The partition's record is made anew if this is another incarnation; its beat is now. A beat that comes too late
--     (a third of the amnesty) gives every lease of the partition new time.
--   * A known hold: its lease runs from now, its first byte is told; a newer version replaces an older one, never the
--     other way round.
--   * An unknown hold is opened again with all it holds, unchecked, also on a stale or absent account; not if its settle
--     is pending.
-- Reply (one string)  "P", I8 now ms, I8 outbox entries, record
assert(#KEYS >= 2 and #ARGV >= 1, 'renew: 2 keys or more, 1 argument or more')

local OUTBOX, LEASES = KEYS[1], KEYS[2]
read_clock()
local _, record = incarnation(LEASES, OUTBOX)
amnesty_until(LEASES, true)

-- Take a hold's slots off the account (sign -1) or put them on (sign 1); what Redis does not know becomes a placeholder.
local function move_slots(account, meta, hold, sign)
  local list, unknown = fields_of(hold), {}
  use_fields(account, list)
  for index = 1, #names do
    if not vals[index] and string.byte(names[index]) == 119 then -- w: a wallet
      unknown[#unknown + 1] = index
    end
  end
  move_hold(account, meta, hold, 0, sign, nil, {}, {})
  for _, index in ipairs(unknown) do
    if vals[index] then -- one that nothing was taken from stays unknown
      know_wallet(account, string.sub(names[index], 2))
    end
  end
  write_fields(account)
end

-- One hold of an account whose meta is at hand.
local function renew_one(account, meta, id, lease_ms, given)
  local field = 'h' .. id
  local found = redis.call('HMGET', account, field, 'p' .. id)
  local stored, mark = found[1], found[2]
  local version, flags, created, takes, windows = struct.unpack(HOLD, given)
  local body = string.sub(given, 12)
  if not stored then
    if mark and string.byte(mark) == SETTLED then
      return
    end
    move_slots(account, meta, given, 1)
    meta[HOLDS] = meta[HOLDS] + 1
  else
    local known, told = struct.unpack('<I2B', stored)
    flags = math.max(flags, told)
    if version > known then
      move_slots(account, meta, stored, -1)
      move_slots(account, meta, given, 1)
    else
      version, _, created, takes, windows = struct.unpack(HOLD, stored)
      body = string.sub(stored, 12)
    end
  end
  redis.call('HSET', account, field, struct.pack(HOLD, version, flags, created, takes, windows) .. body)
  index_lease(account, LEASES, meta, id, now + lease_ms)
end

local owner, account, meta = 0, nil, nil
for index = 2, #ARGV do
  local number, id, lease_ms = struct.unpack('<I2c16I4', ARGV[index])
  if number ~= owner then
    if account then
      redis.call('HSET', account, 'm', pack_meta(meta))
    end
    owner, account = number, KEYS[number + 2]
    local packed = redis.call('HGET', account, 'm')
    meta = packed and read_meta(packed) or new_meta(LEASES)
  end
  renew_one(account, meta, id, lease_ms, string.sub(ARGV[index], 23))
end
if account then
  redis.call('HSET', account, 'm', pack_meta(meta))
end
return 'P' .. struct.pack('<I8I8', now, redis.call('XLEN', OUTBOX)) .. record
