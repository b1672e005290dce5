-- One of many workers does the work of nobody: a lease by name, held by who asks first and as long as it asks again.
--
-- Flags: none
-- KEYS  1 the lease (string)
-- ARGV  1 policy (packed, see prelude.lua)  2 owner (string)  3 time to live in ms (number)
-- Example  "worker-1", 5000 → 1; "worker-2", 5000 → 0 for the next 5 seconds
-- Effect
--   * Taken if free, renewed if ours. By the server's own clock, whatever the test offset.
-- Reply  integer: 1 = the caller leads, 0 = somebody else does
assert(#KEYS == 1 and #ARGV == 3, 'lead: 1 key, 3 arguments')

local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[2] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
