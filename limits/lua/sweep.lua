-- Find accounts of a partition that have dead leases; lapse ends them, account by account.
--
-- Flags: allow-oom
-- KEYS  1 the partition's outbox (stream)  2 the partition's lease index (sorted set)
-- ARGV  1 policy (packed, see prelude.lua)  2 how many accounts at most (count)
-- Example  {"acme"}: acme has a lease that is over
-- Effect
--   * Counts as a beat: Redis is within reach of somebody. Writes nothing else.
-- Reply  array of strings: account names
assert(#KEYS == 2 and #ARGV == 2, 'sweep: 2 keys, 2 arguments')

read_clock()
incarnation(KEYS[2], KEYS[1])
if amnesty_until(KEYS[2], true) > now then
  return {}
end
local first, last = string.format('%.0f', ACCOUNT_AT), string.format('%.0f', ACCOUNT_AT + now)
local due = redis.call('ZRANGEBYSCORE', KEYS[2], first, last, 'LIMIT', 0, tonumber(ARGV[2]))
for index = 1, #due do
  due[index] = string.sub(due[index], 2)
end
return due
