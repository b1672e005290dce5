-- Settle for the nginx row: free the hold, post what was used, append it to the outbox.
-- KEYS: 1 the account's hash, 2 the outbox (a stream)
-- ARGV: 1 the hold's id, 2 what was used (tokens)
-- Reply: 1 when settled, 0 when there was no such hold
local field = "hold:" .. ARGV[1]
local most = redis.call("HGET", KEYS[1], field)
if not most then return 0 end
redis.call("HDEL", KEYS[1], field)
redis.call("HINCRBY", KEYS[1], "held", -tonumber(most))
redis.call("HINCRBY", KEYS[1], "posted", ARGV[2])
redis.call("XADD", KEYS[2], "MAXLEN", "~", "10000", "*", "hold", ARGV[1], "used", ARGV[2])
return 1
