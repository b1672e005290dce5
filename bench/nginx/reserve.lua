-- Reserve for the nginx row: wallet, and requests and tokens per minute of four scopes, all or nothing.
-- KEYS: 1 the account's hash, 2 the outbox (unused here, declared as in settle)
-- ARGV: 1 the hold's id, 2 the most it can cost (steps), 3 the most it can use (tokens)
-- Reply: {1 when held or 0, available (steps), limit and remaining requests, limit and remaining tokens of the key,
-- seconds until its windows end}
local SCOPES = {"account", "team", "user", "key"}
local REQUESTS, TOKENS = 100000000, 100000000000
local cost, most = tonumber(ARGV[2]), tonumber(ARGV[3])
local now = tonumber(redis.call("TIME")[1])
local minute = math.floor(now / 60)
local wallet = redis.call("HMGET", KEYS[1], "granted", "posted", "held")
local available = tonumber(wallet[1] or 0) - tonumber(wallet[2] or 0) - tonumber(wallet[3] or 0)
if available < cost then return {0, available} end
local writes = {}
local requests, tokens
for _, scope in ipairs(SCOPES) do
    local at, asked, used, cap = unpack(redis.call(
        "HMGET", KEYS[1], scope .. ":at", scope .. ":requests", scope .. ":tokens", scope .. ":cap"))
    if tonumber(at or 0) ~= minute then asked, used = 0, 0 end
    requests, tokens = tonumber(asked) + 1, tonumber(used) + most
    if requests > REQUESTS or tokens > tonumber(cap or TOKENS) then return {0, available} end
    local n = #writes
    writes[n + 1], writes[n + 2] = scope .. ":at", minute
    writes[n + 3], writes[n + 4] = scope .. ":requests", requests
    writes[n + 5], writes[n + 6] = scope .. ":tokens", tokens
end
redis.call("HINCRBY", KEYS[1], "held", cost)
redis.call("HSET", KEYS[1], "hold:" .. ARGV[1], cost, unpack(writes))
return {1, available - cost, REQUESTS, REQUESTS - requests, TOKENS, TOKENS - tokens, 60 - now % 60}
