-- A metering gateway in nginx: what `metered.conf` calls at each phase of a request.
--
-- It does per call what Tollgate does: find the caller, decode the body, price what the call can cost at most, reserve
-- that and every scope's windows in Redis in one script, relay, tell the caller where its limits stand, read the usage,
-- price it, settle in Redis in another script with the call's record for the bill, count metrics. Less exactly: bytes
-- / 4 for tokens; no SQL, so nothing survives Redis; no bad input but broken JSON is refused.

local cjson = require("cjson.safe")

local metered = {}
local options, callers, names = {}, {}, {}
local counts = ngx.shared.metrics
local POOL_SIZE = 1024
local IDLE_MS = 60000
local TIMEOUT_MS = 250
local OUTPUT_DEFAULT = 4096
local STEPS = {input = 1000, cached = 1000, output = 1000} -- per token: three decimals, every kind at price 1
local BUCKETS_S = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10}

-- Options: redis (socket address), keys (file of "key account team user" lines), reserve and settle (digests of loaded
-- scripts).
function metered.init(given)
    options = given
    for line in io.lines(given.keys) do
        local key, account, team, user = line:match("^(%S+) (%S+) (%S+) (%S+)$")
        callers[key] = {key = "key-" .. account, account = account, team = team, user = user,
                        fields = "{" .. account .. "}a", outbox = "{" .. account .. "}o"}
    end
end

local function read_reply(socket)
    local line, why = socket:receive("*l")
    if not line then return nil, why end
    local kind, rest = line:sub(1, 1), line:sub(2)
    if kind == ":" then return tonumber(rest) end
    if kind == "-" then return nil, rest end
    if kind == "+" then return rest end
    if kind == "$" then
        local bytes = socket:receive(tonumber(rest) + 2)
        return bytes and bytes:sub(1, -3)
    end
    local list = {}
    for i = 1, tonumber(rest) do list[i] = read_reply(socket) end
    return list
end

-- One command over a kept connection. Returns the reply, or nil and why.
local function redis(...)
    local parts, count = {}, select("#", ...)
    parts[1] = "*" .. count .. "\r\n"
    for i = 1, count do
        local value = tostring((select(i, ...)))
        parts[#parts + 1] = "$" .. #value .. "\r\n" .. value .. "\r\n"
    end
    local socket = ngx.socket.tcp()
    socket:settimeout(TIMEOUT_MS)
    local connected, why = socket:connect(options.redis)
    if not connected then return nil, why end
    socket:send(table.concat(parts))
    local reply, failure = read_reply(socket)
    if failure then return nil, failure end
    socket:setkeepalive(IDLE_MS, POOL_SIZE)
    return reply
end

local function refuse(status, code)
    counts:incr("denials:" .. code, 1, 0)
    ngx.status = status
    ngx.header["content-type"] = "application/json"
    ngx.print('{"error":{"code":"' .. code .. '"}}')
    return ngx.exit(status)
end

-- The access phase: nothing reaches the upstream without a hold.
function metered.admit()
    local key = (ngx.var.http_authorization or ""):match("^Bearer (%S+)$")
    local caller = callers[key]
    if not caller then return refuse(401, "invalid_api_key") end
    ngx.req.read_body()
    local body = ngx.req.get_body_data()
    local call = body and cjson.decode(body)
    if type(call) ~= "table" or type(call.model) ~= "string" then return refuse(400, "invalid_request") end
    local input = math.ceil(#body / 4)
    local output = tonumber(call.max_tokens or call.max_completion_tokens) or OUTPUT_DEFAULT
    local held = input * STEPS.input + output * STEPS.output
    local hold = ngx.var.request_id
    local reply = redis("EVALSHA", options.reserve, 2, caller.fields, caller.outbox, hold, held, input + output)
    if not reply then return refuse(503, "quota_unavailable") end
    if reply[1] ~= 1 then return refuse(429, "limit_exceeded") end
    ngx.ctx.call = {
        caller = caller, hold = hold, held = held, tokens = input + output, input = input, model = call.model,
        is_stream = call.stream, remaining = reply[2], limits = reply, began_s = ngx.req.start_time(),
    }
end

-- The header filter: the caller learns what was held and where its tightest limits stand.
function metered.tell()
    local call = ngx.ctx.call
    if not call then return end
    local header, limits = ngx.header, call.limits
    header["tollgate-request-id"] = call.hold
    header["tollgate-wallet"] = "tokens"
    header["tollgate-held"] = string.format("%.3f", call.held / 1000)
    header["tollgate-remaining"] = string.format("%.3f", call.remaining / 1000)
    header["x-ratelimit-limit-requests"] = limits[3]
    header["x-ratelimit-remaining-requests"] = limits[4]
    header["x-ratelimit-reset-requests"] = limits[7] .. "s"
    header["x-ratelimit-limit-tokens"] = limits[5]
    header["x-ratelimit-remaining-tokens"] = limits[6]
    header["x-ratelimit-reset-tokens"] = limits[7] .. "s"
end

-- The body filter: the usage is near the end of a JSON answer, and in the last events of a stream; the others say null.
function metered.read_usage()
    local call, bytes = ngx.ctx.call, ngx.arg[1]
    if not call or not bytes or bytes == "" then return end
    if not call.is_stream then
        call.answer = call.answer and call.answer .. bytes or bytes
        bytes = call.answer
    end
    local at = bytes:find('"usage":{', 1, true) or bytes:find('"usage": {', 1, true)
    if at then
        local usage = cjson.decode(bytes:match("%b{}", at))
        call.usage = type(usage) == "table" and usage or call.usage
    end
end

local function settle(premature, call, charged, tokens, record)
    if premature then return end
    local caller = call.caller
    redis("EVALSHA", options.settle, 2, caller.fields, caller.outbox, call.hold, charged, tokens - call.tokens, record)
end

-- The names of a model's metrics with a status, spelled once.
local function names_of(model, status)
    local known = names[model .. status]
    if not known then
        local labels = model .. ":bench"
        known = {
            requests = "requests:" .. labels .. ":" .. status, input = "tokens:" .. labels .. ":input",
            cached = "tokens:" .. labels .. ":cached", output = "tokens:" .. labels .. ":output",
            charged = "charged:" .. labels, sum = "seconds:" .. labels .. ":sum",
        }
        for i = 1, #BUCKETS_S + 1 do known[i] = "seconds:" .. labels .. ":" .. i end
        names[model .. status] = known
    end
    return known
end

-- What dashboards ask of every gateway: calls, tokens by kind, what was charged, how long it took.
local function count(call, status, input, cached, output, charged)
    local name = names_of(call.model, status)
    local took_s = ngx.now() - call.began_s
    local bucket = 1
    while bucket <= #BUCKETS_S and took_s > BUCKETS_S[bucket] do bucket = bucket + 1 end
    counts:incr(name.requests, 1, 0)
    counts:incr(name.input, input, 0)
    if cached > 0 then counts:incr(name.cached, cached, 0) end
    counts:incr(name.output, output, 0)
    counts:incr(name.charged, charged, 0)
    counts:incr(name[bucket], 1, 0)
    counts:incr(name.sum, took_s, 0)
end

-- The log phase: price what was used, count it. It may not wait for a socket, so a timer settles.
function metered.settle()
    local call = ngx.ctx.call
    if not call then return end
    local usage, caller = call.usage or {}, call.caller
    local input, output = usage.prompt_tokens or call.input, usage.completion_tokens or 0
    local cached = (usage.prompt_tokens_details or {}).cached_tokens or 0
    local reasoning = (usage.completion_tokens_details or {}).reasoning_tokens or 0
    local charged = (input - cached) * STEPS.input + cached * STEPS.cached + output * STEPS.output
    local record = cjson.encode({
        hold = call.hold, account = caller.account, team = caller.team, user = caller.user, key = caller.key,
        route = "openai_chat", model = call.model, upstream = "model", plan = "bench", feature = "general",
        wallet = "tokens", input = input, cached = cached, output = output, reasoning = reasoning, held = call.held,
        charged = charged, status = ngx.status, began_s = call.began_s, ended_s = ngx.now(),
    })
    count(call, ngx.status, input, cached, output, charged)
    ngx.timer.at(0, settle, call, charged, input + output, record)
end

return metered
