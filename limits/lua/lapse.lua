-- End the dead leases of an account that nobody touches; sweep finds such accounts.
--
-- Flags: allow-oom
-- KEYS  1 the account (hash)  2 the partition's outbox (stream)  3 the partition's lease index (sorted set)
-- ARGV  1 policy (packed, see prelude.lua)  2 how many holds at most (count)
-- Example  a worker died with two holds, one of them past its first byte: both are freed, that one is charged its abandon
-- Effect
--   * Only leases that are over, and only after the partition's amnesty.
--   * Each hold is freed; if its first byte was told and nothing of it is pending, its abandon is marked pending as a
--     lapsed charge and appended to the outbox with the hold's note.
--   * The account's next due lease is noted, in the account and in the index.
-- Reply  array of strings: "1" (charged) or "0" (freed only), then the hold id (16 bytes)
assert(#KEYS == 3 and #ARGV == 2, 'lapse: 3 keys, 2 arguments')

read_clock()
incarnation(KEYS[3], KEYS[2])
local packed = redis.call('HGET', KEYS[1], 'm')
if not packed then -- the account was removed by hand: nothing of it can be due
  redis.call('ZREM', KEYS[3], 'a' .. account_of(KEYS[1]))
  return {}
end
return lapse_due(KEYS[1], KEYS[2], KEYS[3], read_meta(packed), tonumber(ARGV[2]))
