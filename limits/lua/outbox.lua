-- Charges of a partition that wait for SQL longer than a time, oldest first, whoever wrote them.
--
-- Flags: allow-oom
-- KEYS  1 the partition's outbox (stream)
-- ARGV  1 policy (packed, see prelude.lua)  2 age in ms at least (number)  3 how many at most (count)
--       4 read after this entry id (string; "" = from the oldest)
-- Example  5000, 200 → {now, {{"1767225600000-0", {"c", charge}}}}
-- Effect
--   * None.
-- Reply  array: now ms (string), the entries as XRANGE answers them
assert(#KEYS == 1 and #ARGV == 4, 'outbox: 1 key, 4 arguments')

read_clock()
local first = ARGV[4] == '' and '-' or '(' .. ARGV[4]
local last = string.format('%.0f', now - tonumber(ARGV[2]))
return {string.format('%.0f', now), redis.call('XRANGE', KEYS[1], first, last, 'COUNT', tonumber(ARGV[3]))}
