-- Shared locals about leases: how a hold is freed, what a dead lease charges, when the next one is due.
-- Layouts are in prelude.lua.

-- Add a charge to the partition's outbox; answers the entry's id. The server's own time, as now is outside tests.
local function append(outbox, charge)
  local at = STILL_MS == 0 and OFFSET_MS == 0 and '*' or string.format('%.0f-*', now)
  local entry = redis.pcall('XADD', outbox, at, 'c', charge)
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

-- What a lapse charges one wallet: its abandon over its takes in order, the excess on the last. Answers lines and count.
local function abandoned_lines(hold, wallet, abandon)
  local takes, left, last, lines, found = string.byte(hold, 10), abandon, 0, '', 0
  for take = 1, takes do
    last = string.byte(hold, 11 + 12 * take) == wallet and take or last
  end
  for take = 1, last do
    local number, amount, owner = struct.unpack(TAKE, hold, 12 * take)
    local part = take == last and left or math.min(left, amount)
    if owner == wallet and part > 0 then
      lines, left, found = lines .. struct.pack('<I4i8', number, part), left - part, found + 1
    end
  end
  return lines, found
end

-- What a lapse charges: a vector of each wallet's and each budget's abandon.
local function abandoned(hold, list)
  local values, counts = read_values(hold, tail_of(hold))
  local wallets, budget_kinds, _, count, scopes, window_kinds = string.byte(hold, counts, counts + 5)
  local parts, found = '', 0
  for wallet = 1, wallets do
    local abandon = values[string.byte(hold, counts + 5 + 2 * wallet)]
    local lines, some = abandoned_lines(hold, wallet, abandon)
    if some > 0 then
      local name = string.sub(list[wallet], 2)
      parts, found = parts .. struct.pack('<Bc0B', #name, name, some) .. lines, found + 1
    end
  end
  local vector, place = string.char(found) .. parts, counts + 7 + 2 * wallets
  local kinds = read_kinds(hold, place, budget_kinds)
  place, parts, found = place + 3 * budget_kinds + 3 * window_kinds + scopes, '', 0
  for _ = 1, count do
    local eighth, members = struct.unpack('<I3B', hold, place)
    for slot = place + 4, place + 2 * members + 2, 2 do
      local kind, low = string.byte(hold, slot, slot + 1)
      local abandon = values[kinds[3 * kind - 1]]
      if abandon > 0 then
        parts, found = parts .. struct.pack('<I4I6i8', 8 * eighth + low, values[kinds[3 * kind]], abandon), found + 1
      end
    end
    place = place + 4 + 2 * members
  end
  return vector .. string.char(found) .. parts
end

local function account_of(account)
  return string.sub(account, string.find(account, ':', 1, true) + 3)
end

-- Free a hold whose fields were not asked for at the start; the caller writes meta. Answers its fields and its note.
local function free_hold(account, leases, meta, id, hold, actuals)
  local list, note = fields_of(hold)
  use_fields(account, list)
  move_hold(account, meta, hold, 0, -1, actuals, {}, {})
  meta[HOLDS] = meta[HOLDS] - 1
  write_fields(account)
  redis.call('HDEL', account, 'h' .. id)
  redis.call('ZREM', leases, 'h' .. id)
  return list, string.sub(hold, note)
end

-- End one hold whose lease is over: free it; charge its abandon if the first byte was told and nothing is pending.
local function lapse_one(account, outbox, leases, meta, id, hold)
  local list, note = free_hold(account, leases, meta, id, hold, nil)
  if math.fmod(string.byte(hold, 3), 2) == 0 then
    return '0' .. id
  end
  use_fields(account, {'p' .. id})
  if not vals[1] then
    local vector, name = abandoned(hold, list), account_of(account)
    local charge = struct.pack('<Bc16Bc0I2', LAPSED, id, #name, name, #vector) .. vector .. note
    local lines, periods = read_vector(account, vector)
    add_vector(account, meta, lines, periods, 0, 1)
    local entry = append(outbox, charge)
    vals[1], dirty[1] = struct.pack('<BBc0', LAPSED, #entry, entry) .. vector, true
    write_fields(account)
  end
  return '1' .. id
end

-- Before this time no lease of the partition lapses, ms. An outage shows as an old beat, a clock that went back as one to
-- come: then everybody gets time.
local function amnesty_until(leases, beating)
  local first = redis.call('ZRANGE', leases, 0, 1, 'WITHSCORES')
  local amnesty, beat = first[2] - RECORD_AT, first[4] - BEAT_AT
  if now - beat > AMNESTY_MS / 3 or now < beat then
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
