-- Settle for the nginx row: free the hold, post what was used, put the windows right, append the record to the outbox.
-- KEYS: 1 the account's hash, 2 the outbox (a stream)
-- ARGV: 1 the hold's id, 2 what is charged (steps), 3 tokens used beyond what was reserved (mostly negative),
-- 4 the call's record
-- Reply: 1 when settled, 0 when there was no such hold
local SCOPES = {"account", "team", "user", "key"}
local field = "hold:" .. ARGV[1]
local most = redis.call("HGET", KEYS[1], field)
if not most then return 0 end
redis.call("HDEL", KEYS[1], field)
redis.call("HINCRBY", KEYS[1], "held", -tonumber(most))
redis.call("HINCRBY", KEYS[1], "posted", ARGV[2])
for _, scope in ipairs(SCOPES) do redis.call("HINCRBY", KEYS[1], scope .. ":tokens", ARGV[3]) end
redis.call("XADD", KEYS[2], "MAXLEN", "~", "10000", "*", "record", ARGV[4])
return 1
