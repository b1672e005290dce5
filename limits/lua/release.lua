-- End a hold without a charge: the call was not served. Everything goes back, windows too.
--
-- Flags: allow-oom
-- KEYS  1 the account (hash)  2 the partition's outbox (stream)  3 the partition's lease index (sorted set)
-- ARGV  1 policy (packed, see prelude.lua)  2 hold id (16 bytes, string)
-- Example  a reserve whose reply never came: released by its id once its deadline has passed
-- Effect
--   * Held of grants and budgets falls by what was taken; windows that still run get their amount back; the hold is gone.
--   * An unknown hold: nothing.
-- Reply  integer: 1 = the hold was open, 0 = it was not known
assert(#KEYS == 3 and #ARGV == 2, 'release: 3 keys, 2 arguments')

read_clock()
local field = 'h' .. ARGV[2]
local found = redis.call('HMGET', KEYS[1], 'm', field)
local hold = found[2]
if not hold then
  return 0
end
local meta = read_meta(found[1])
local nothing = {}
for window = 1, string.byte(hold, 11) do
  nothing[window] = 0
end
free_hold(KEYS[1], KEYS[3], meta, ARGV[2], hold, nothing)
redis.call('HSET', KEYS[1], 'm', pack_meta(meta))
return 1
