-- SQL's last seq of an account, some time old: a watermark below it means that a confirm was lost for good.
--
-- Flags: allow-oom
-- KEYS  1 the account (hash)  2 the partition's outbox (stream)  3 the partition's lease index (sorted set)
-- ARGV  1 policy (packed, see prelude.lua)  2 last seq in SQL (number)
-- Example  watermark 11, last seq 12: stale, the next caller loads
-- Effect
--   * A live account whose watermark is below becomes stale, without a ticket: the next to touch it brings one.
-- Reply  integer: 1 = it became stale, 0 = nothing changed
assert(#KEYS == 3 and #ARGV == 2, 'sync_seq: 3 keys, 2 arguments')

read_clock()
local stamp = incarnation(KEYS[3], KEYS[2])
local packed = redis.call('HGET', KEYS[1], 'm')
local meta = packed and read_meta(packed)
if not meta or meta[STAMP] ~= stamp or meta[SEQ] >= tonumber(ARGV[2]) then
  return 0
end
meta[STAMP] = NO_STAMP
redis.call('HSET', KEYS[1], 'm', pack_meta(meta))
redis.call('HDEL', KEYS[1], 't')
return 1
