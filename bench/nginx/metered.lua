-- A metering gateway in nginx: what `metered.conf` calls at each phase of a request.
--
-- It does per call what Tollgate does: find the caller, decode the body, bound what the call can cost, reserve that
-- in Redis in one script, relay, read the usage from the answer, settle in Redis in another. Less exactly: bytes / 4
-- for tokens, no ledger, no metrics, nothing survives Redis.

local cjson = require("cjson.safe")

local metered = {}
local options, accounts = {}, {}
local POOL_SIZE = 1024
local IDLE_MS = 60000
local TIMEOUT_MS = 250

-- Options: redis (socket address), keys (file of "key account" lines), reserve and settle (digests of loaded scripts).
function metered.init(given)
    options = given
    for line in io.lines(given.keys) do
        local key, account = line:match("^(%S+) (%S+)$")
        accounts[key] = account
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
    ngx.status = status
    ngx.header["content-type"] = "application/json"
    ngx.print('{"error":{"code":"' .. code .. '"}}')
    return ngx.exit(status)
end

-- The access phase: nothing reaches the upstream without a hold.
function metered.admit()
    local key = (ngx.var.http_authorization or ""):match("^Bearer (%S+)$")
    local account = accounts[key]
    if not account then return refuse(401, "invalid_api_key") end
    ngx.req.read_body()
    local body = ngx.req.get_body_data()
    local call = body and cjson.decode(body)
    if type(call) ~= "table" or type(call.model) ~= "string" then return refuse(400, "invalid_request") end
    local output_max = tonumber(call.max_tokens or call.max_completion_tokens) or 4096
    local hold = ngx.var.request_id
    local most = math.ceil(#body / 4) + output_max
    local reply = redis("EVALSHA", options.reserve, 2, "{" .. account .. "}a", "{" .. account .. "}o", hold, most)
    if not reply then return refuse(503, "quota_unavailable") end
    if reply[1] ~= 1 then return refuse(429, "limit_exceeded") end
    ngx.ctx.account, ngx.ctx.hold, ngx.ctx.stream = account, hold, call.stream
end

-- The body filter: the usage is near the end of a JSON answer, and in the last events of a stream.
function metered.read_usage()
    local ctx, bytes = ngx.ctx, ngx.arg[1]
    if not ctx.hold or not bytes or bytes == "" then return end
    if not ctx.stream then
        ctx.answer = ctx.answer and ctx.answer .. bytes or bytes
        if not ngx.arg[2] and not ctx.answer:find('"usage"', 1, true) then return end
        bytes = ctx.answer
    end
    if bytes:find('"usage"', 1, true) then
        ctx.used = tonumber(bytes:match('"total_tokens": ?(%d+)')) or ctx.used
    end
end

local function settle(premature, account, hold, used)
    if premature then return end
    redis("EVALSHA", options.settle, 2, "{" .. account .. "}a", "{" .. account .. "}o", hold, used)
end

-- The log phase may not wait for a socket, so a timer settles.
function metered.settle()
    local ctx = ngx.ctx
    if ctx.hold then ngx.timer.at(0, settle, ctx.account, ctx.hold, ctx.used or 0) end
end

return metered
