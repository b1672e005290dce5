-- Reserve for the nginx row: wallet, and requests and tokens per minute of four scopes, all or nothing.
-- KEYS: 1 the account's hash, 2 the outbox (unused here, declared as in settle)
-- ARGV: 1 the hold's id, 2 the most it can cost (tokens)
-- Reply: {1, available} when held, {0, available} when refused; tokens
local SCOPES = {"account", "team", "user", "key"}
local most = tonumber(ARGV[2])
local minute = math.floor(redis.call("TIME")[1] / 60)
local wallet = redis.call("HMGET", KEYS[1], "granted", "posted", "held")
local available = tonumber(wallet[1] or 0) - tonumber(wallet[2] or 0) - tonumber(wallet[3] or 0)
if available < most then return {0, available} end
local writes = {}
for _, scope in ipairs(SCOPES) do
    local at, requests, tokens, cap = unpack(redis.call(
        "HMGET", KEYS[1], scope .. ":at", scope .. ":requests", scope .. ":tokens", scope .. ":cap"))
    if tonumber(at or 0) ~= minute then requests, tokens = 0, 0 end
    if cap and tonumber(tokens) + most > tonumber(cap) then return {0, available} end
    local n = #writes
    writes[n + 1], writes[n + 2] = scope .. ":at", minute
    writes[n + 3], writes[n + 4] = scope .. ":requests", tonumber(requests) + 1
    writes[n + 5], writes[n + 6] = scope .. ":tokens", tonumber(tokens) + most
end
redis.call("HINCRBY", KEYS[1], "held", most)
redis.call("HSET", KEYS[1], "hold:" .. ARGV[1], most, unpack(writes))
return {1, available - most}
