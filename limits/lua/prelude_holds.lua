-- Shared locals about holds: their slots, how they move on and off the account's fields, how dead leases end.
-- Layouts are in prelude.lua.

-- The values of a tail that starts at a position, and where its slots begin.
local function read_values(packed, at)
  local blocks = string.byte(packed, at)
  local values = {struct.unpack('<I8I8I8I8', packed, at + 1)}
  for block = 2, blocks do
    local first = 4 * block - 3
    values[first], values[first + 1], values[first + 2], values[first + 3] =
      struct.unpack('<I8I8I8I8', packed, at + 32 * block - 31)
  end
  for index = 1, 4 * blocks do
    if values[index] > AMOUNT_MAX then
      reject('an amount is out of range')
    end
  end
  return values, at + 1 + 32 * blocks
end

-- Where a hold's tail begins.
local function tail_of(hold)
  local takes, windows = string.byte(hold, 24, 25)
  return 26 + 13 * takes + 4 * windows
end

-- The fields that a hold's slots live in, in the tail's order: wallets, buckets, scopes.
local function fields_of(hold, list)
  local at = tail_of(hold)
  at = at + 1 + 32 * string.byte(hold, at)
  local count, name, buckets, key, flags, bucket, first
  count, at = struct.unpack('<B', hold, at)
  for _ = 1, count do
    name, at = struct.unpack('<Bc0', hold, at)
    list[#list + 1], at = 'w' .. name, at + 2
  end
  count, buckets, at = struct.unpack('<BB', hold, at)
  first = #list
  for _ = 1, count do
    key, bucket, at = struct.unpack('<c10xxB', hold, at)
    list[first + bucket] = bucket_name(key)
  end
  count, at = struct.unpack('<B', hold, at)
  for _ = 1, count do
    name, flags, at = struct.unpack('<Bc0B', hold, at)
    list[#list + 1], at = name, at + 6 * (flags % 128)
  end
  return list
end

-- Put a hold's slots on (sign 1) or take them off (sign -1) the fields after base. actuals says what becomes of its
-- windows: nil leaves them, 'back' gives their amounts back, else I8 per window what was used (or -1: as reserved).
local function move_hold(hold, base, sign, actuals)
  local takes, windows = string.byte(hold, 24, 25)
  local at = 26
  for _ = 1, takes do
    local key, amount, wallet = struct.unpack('<c4I8B', hold, at)
    local index = base + wallet
    vals[index] = bump_grant(vals[index], key, 0, 0, sign * amount, sign > 0)
    dirty[index], at = true, at + 13
  end
  local starts = at
  local values
  values, at = read_values(hold, at + 4 * windows)
  local count, buckets, key, name, amount, bucket, flags
  count, at = struct.unpack('<B', hold, at)
  base = base + count
  for _ = 1, count do
    name, at = struct.unpack('<Bc0', hold, at)
    at = at + 2
  end
  count, buckets, at = struct.unpack('<BB', hold, at)
  for _ = 1, count do
    key, amount, bucket, at = struct.unpack('<c10BxB', hold, at)
    vals[base + bucket] = bump_budget(vals[base + bucket], key, 0, 0, sign * values[amount], sign > 0)
    dirty[base + bucket] = true
  end
  count, at = struct.unpack('<B', hold, at)
  base = base + buckets
  local seen = 0
  for index = base + 1, base + count do
    name, flags, at = struct.unpack('<Bc0B', hold, at)
    local packed = vals[index] or EMPTY_SCOPE
    if flags >= 128 then
      packed = struct.pack('<I4', struct.unpack('<I4', packed) + sign) .. string.sub(packed, 5)
    end
    for _ = 1, flags % 128 do
      key, amount, at = struct.unpack('<c5B', hold, at)
      if actuals then
        local used = actuals == 'back' and 0 or struct.unpack('<i8', actuals, 8 * seen + 1)
        local window = find_record(packed, key, 5, 19)
        if used >= 0 and window then
          local began, full = struct.unpack('<I6i8', packed, window + 5)
          -- Only in the window that it was taken from: an amount belongs to its window.
          if began % 4294967296 == struct.unpack('<I4', hold, starts + 4 * seen) then
            full = math.max(0, full + used - values[amount])
            packed = string.sub(packed, 1, window + 10) .. struct.pack('<i8', full) .. string.sub(packed, window + 19)
          end
        end
      end
      seen = seen + 1
    end
    vals[index], dirty[index] = packed, true
  end
end

-- Write every changed field of the account.
local function write_fields(account)
  local args = {}
  for index in pairs(dirty) do
    args[#args + 1] = names[index]
    args[#args + 1] = vals[index]
  end
  if #args > 0 then
    redis.call('HSET', account, unpack(args))
  end
end

-- Add a charge to the partition's outbox; answers the entry's id. The server's own time when the clock stepped back.
local function append(outbox, charge)
  local entry = redis.pcall('XADD', outbox, string.format('%.0f-*', now), 'c', charge)
  if type(entry) == 'table' then
    entry = redis.call('XADD', outbox, '*', 'c', charge)
  end
  return entry
end

-- The time of the lease index that holds a lease's end, ms: its unit's end.
local function due_of(lease_end)
  return EPOCH_MS + UNIT_MS * math.max(0, math.ceil((lease_end - EPOCH_MS) / UNIT_MS))
end

local function index_score(meta, due)
  return meta[GROUP] * GROUP_SPAN + (due - EPOCH_MS) / UNIT_MS
end

-- What a lapse charges: each wallet's abandon over its takes in order, the excess on the last; each budget's abandon.
local function abandoned(hold)
  local takes, windows = string.byte(hold, 24, 25)
  local values, at = read_values(hold, 26 + 13 * takes + 4 * windows)
  local count, name, abandon, bucket, key, _
  local parts, wallets = '', 0
  count, at = struct.unpack('<B', hold, at)
  for wallet = 1, count do
    name, abandon, at = struct.unpack('<Bc0Bx', hold, at)
    local left, last, lines, found = values[abandon], 0, '', 0
    for take = 1, takes do
      last = string.byte(hold, 25 + 13 * take) == wallet and take or last
    end
    for take = 1, last do
      local number, amount, owner = struct.unpack('<c4I8B', hold, 13 + 13 * take)
      local part = take == last and left or math.min(left, amount)
      if owner == wallet and part > 0 then
        lines, left, found = lines .. number .. struct.pack('<i8', part), left - part, found + 1
      end
    end
    if found > 0 then
      parts, wallets = parts .. struct.pack('<Bc0B', #name, name, found) .. lines, wallets + 1
    end
  end
  local lines, found = '', 0
  count, _, at = struct.unpack('<BB', hold, at)
  for _ = 1, count do
    key, abandon, bucket, at = struct.unpack('<c10xBB', hold, at)
    if values[abandon] > 0 then
      lines, found = lines .. key .. struct.pack('<i8', values[abandon]), found + 1
    end
  end
  count, at = struct.unpack('<B', hold, at)
  for _ = 1, count do
    name, abandon, at = struct.unpack('<Bc0B', hold, at)
    at = at + 6 * (abandon % 128)
  end
  return string.char(wallets) .. parts .. string.char(found) .. lines, string.sub(hold, at)
end

local function account_of(account)
  return string.sub(account, string.find(account, ':', 1, true) + 3)
end

-- Free a hold whose fields were not asked for at the start; the caller writes meta.
local function free_hold(account, leases, meta, id, hold, actuals)
  names, dirty = fields_of(hold, {}), {}
  vals = redis.call('HMGET', account, unpack(names))
  move_hold(hold, 0, -1, actuals)
  meta[HOLDS] = meta[HOLDS] - 1
  write_fields(account)
  redis.call('HDEL', account, 'h' .. id)
  redis.call('ZREM', leases, 'h' .. id)
end

-- End one hold whose lease is over: free it; charge its abandon if the first byte was told and nothing is pending.
local function lapse_one(account, outbox, leases, meta, id, hold)
  free_hold(account, leases, meta, id, hold, nil)
  if math.fmod(string.byte(hold, 3), 2) == 0 then
    return '0' .. id
  end
  names, vals, dirty = {'p' .. id}, {redis.call('HGET', account, 'p' .. id)}, {}
  if not vals[1] then
    local vector, note = abandoned(hold)
    local name = account_of(account)
    local charge = struct.pack('<Bc16Bc0I2', LAPSED, id, #name, name, #vector) .. vector .. note
    add_vector(account, meta, vector, 1, 0, 1)
    local entry = append(outbox, charge)
    vals[1], dirty[1] = struct.pack('<BBc0', LAPSED, #entry, entry) .. vector, true
    write_fields(account)
  end
  return '1' .. id
end

-- Before this time no lease of the partition lapses, ms. An outage shows as an old beat: then everybody gets time.
local function amnesty_until(leases, beating)
  local first = redis.call('ZRANGE', leases, 0, 1, 'WITHSCORES')
  local amnesty, beat = first[2] - RECORD_AT, first[4] - BEAT_AT
  if now - beat > AMNESTY_MS / 3 then
    amnesty = now + AMNESTY_MS
    redis.call('ZADD', leases, RECORD_AT + amnesty, first[1], BEAT_AT + now, 'b')
  elseif beating and now - beat > AMNESTY_MS / 12 then
    redis.call('ZADD', leases, BEAT_AT + now, 'b')
  end
  return amnesty
end

-- Free at most limit dead leases of an account, and note when its next one is due. Answers the lapsed hold ids.
local function lapse_due(account, outbox, leases, meta, limit)
  local lapsed = {}
  local amnesty = amnesty_until(leases, false)
  local base = meta[GROUP] * GROUP_SPAN
  if now >= amnesty then
    local last = base + math.floor((now - EPOCH_MS) / UNIT_MS)
    local found = redis.call('ZRANGEBYSCORE', leases, base, last, 'LIMIT', 0, limit)
    for index = 1, #found do
      local hold = redis.call('HGET', account, found[index])
      if hold then
        lapsed[#lapsed + 1] = lapse_one(account, outbox, leases, meta, string.sub(found[index], 2), hold)
      else
        redis.call('ZREM', leases, found[index])
      end
    end
  end
  local following = redis.call('ZRANGEBYSCORE', leases, base, base + GROUP_SPAN - 1, 'WITHSCORES', 'LIMIT', 0, 1)
  if following[2] then
    meta[DUE] = math.max(EPOCH_MS + (following[2] - base) * UNIT_MS, now < amnesty and amnesty or 0)
    redis.call('ZADD', leases, ACCOUNT_AT + meta[DUE], 'a' .. account_of(account))
  else
    meta[DUE] = 0
    redis.call('ZREM', leases, 'a' .. account_of(account))
  end
  redis.call('HSET', account, 'm', pack_meta(meta))
  return lapsed
end

-- Index a hold's lease; the account's own entry moves only when this is its earliest lease.
local function index_lease(account, leases, meta, id, lease_end)
  local due = due_of(lease_end)
  if meta[DUE] == 0 or due < meta[DUE] then
    meta[DUE] = due
    redis.call('ZADD', leases, index_score(meta, due), 'h' .. id, ACCOUNT_AT + due, 'a' .. account_of(account))
  else
    redis.call('ZADD', leases, index_score(meta, due), 'h' .. id)
  end
end
