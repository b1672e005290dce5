-- Shared locals of reserve and extend: check a demand against every slot and prepare what taking it would write.
--
-- The checks read vals and put the outcome back into vals; nothing reaches Redis until the script, finding no refusal,
-- writes all of it. A demand is a tail (see prelude.lua) and its limits: I8 each, in the tail's order: per wallet its
-- minimum; per budget its limit and its end in ms; per scope its concurrency limit if it counts live holds; per window
-- its limit; then a byte each: the narrowness (0 account, 1 team, 2 user, 3 key) of each budget and of each scope.

local LASTING, HELD, RATE, CONCURRENCY, TOO_LARGE = 1, 2, 3, 4, 5

local MINUTE_MS = 60000

local refusal, refusal_rank -- the deciding slot's report, once one refuses
local extending -- the stored hold, when an open hold grows: slots that ask for nothing are not checked
local account -- meta of the account
local takes, taken = 0, '' -- what comes from which grant: count and packed takes
local views, remaining, starts = {}, {}, {} -- per wallet and per window, for the reply and the hold
local thresholds, crossed, crossings = '', '', 0

-- Keep a refusal if it decides: lasting beats passing, then the narrowest scope, then the first slot.
local function refuse(verdict, slot, index, narrowness, limit, used, held, needed, available, resets)
  local rank = ((verdict == LASTING or verdict == TOO_LARGE) and 10 or 0) + narrowness
  if not refusal or rank > refusal_rank then
    refusal_rank = rank
    refusal = struct.pack('<Bc1Bi8i8i8i8i8I8', verdict, slot, index, limit, used, held, needed, available, resets)
  end
end

-- Permille of a capacity in use, rounded down; large numbers lose ten bits first, so that all stays exact.
local function permille(used, capacity)
  if capacity <= 0 or used <= 0 then
    return (capacity <= 0 and used > 0) and 1000 or 0
  end
  if used >= 8796093022208 then
    used, capacity = math.floor(used / 1024), math.max(1, math.floor(capacity / 1024))
  end
  return math.min(65535, math.floor(used * 1000 / capacity))
end

-- Report thresholds (permille of the capacity that is spent) passed for the first time in this period. They are
-- remembered at once, also when the call is then refused.
local function check_warnings(index, wallet, spent)
  local packed = vals[index]
  local warned_period, level = struct.unpack('<I6I2', packed)
  level = warned_period == account[PERIOD] and level or 0
  local reached = level
  for at = 1, #thresholds, 2 do
    local threshold = struct.unpack('<I2', thresholds, at)
    if threshold > level and threshold <= spent then
      crossed, crossings, reached = crossed .. struct.pack('<BI2', wallet, threshold), crossings + 1, threshold
    end
  end
  if reached > level then
    vals[index] = struct.pack('<I6I2', account[PERIOD], reached) .. string.sub(packed, 9)
    redis.call('HSET', KEYS[1], names[index], vals[index])
  end
end

-- Take an amount from a wallet's open grants in burn order, from the cursor on. Answers the cursor's new place, and the
-- grants with what is held of them. A hold of nothing names one too, for what the call may cost above it.
local function take_grants(packed, wallet, amount, cursor)
  local at, from, body, left = 54 * cursor - 1, 53, '', amount
  if amount == 0 and at > #packed then
    at = 53
  end
  while at < #packed do
    local number, granted, counted, pending, on_hold, begins, expires = struct.unpack('<c4i8i8i8i8I6I6', packed, at + 2)
    local free = granted - counted - pending - on_hold
    if is_open(begins, expires) and (free > 0 or amount == 0) then
      local part = math.min(left, free)
      if amount == 0 then
        part = 0
      end
      takes, taken = takes + 1, taken .. number .. struct.pack('<I8B', part, wallet)
      body = body .. string.sub(packed, from, at + 29) .. struct.pack('<i8', on_hold + part)
      from, left = at + 38, left - part
      if left == 0 then
        break
      end
    end
    at = at + 54
  end
  return math.min(math.max((at + 1) / 54, cursor), (#packed + 2) / 54), body .. string.sub(packed, from)
end

-- One wallet: what is open, whether the amount fits, and which grants it comes from.
local function check_wallet(index, wallet, amount, minimum)
  local packed = vals[index] or EMPTY_WALLET
  local capacity, posted, held, resets, cursor, from, till = sums_of(packed)
  local available, need = capacity - posted - held, math.max(amount, minimum)
  if #thresholds > 0 and capacity > 0 and posted > 0 then
    check_warnings(index, wallet, permille(posted, capacity))
    packed = vals[index]
  end
  local at = 4 * wallet
  views[at - 3], views[at - 2] = available - amount, capacity
  views[at - 1], views[at] = permille(posted + held + amount, capacity), resets
  if extending and amount == 0 then
    return
  end
  if available < need then
    local verdict = need > capacity - posted and LASTING or HELD
    verdict = (amount > capacity and capacity > 0) and TOO_LARGE or verdict
    refuse(verdict, 'w', wallet, 0, capacity, posted, held, need, available, resets)
    return
  end
  local body
  cursor, body = take_grants(packed, wallet, amount, cursor)
  vals[index] = string.sub(packed, 1, 8)
    .. struct.pack(SUMS, from, till, capacity, posted, held + amount, resets, cursor) .. body
  dirty[index] = true
end

-- One budget period. One that is older than what Redis knows was left behind, and is refused.
local function check_budget(index, order, number, begins, amount, limit, ends, narrowness)
  local bucket = open_bucket(index)
  local at = find_period(bucket, number, begins)
  local used, held = 0, 0
  if at then
    used, held = bucket[at + 2] + bucket[at + 3], bucket[at + 4]
  elseif has_later(bucket, number, begins) then
    used = limit
  end
  if used + held + amount > limit then
    local verdict = amount > limit and TOO_LARGE or (amount > limit - used and LASTING or HELD)
    refuse(verdict, 'b', order, narrowness, limit, used, held, amount, limit - used - held, ends)
  elseif at then
    bucket[at + 4] = held + amount
  else
    add_period(account, bucket, number, begins, 0, 0, amount)
  end
end

-- One window of an unpacked scope: fixed, aligned to its first use, rolling forward only.
local function check_window(state, order, code, length, amount, limit, narrowness)
  local began, used, at = now, 0, 2
  while state[at] and not (state[at] == code and state[at + 1] == length) do
    at = at + 4
  end
  if state[at] and now < state[at + 2] + 1000 * length then
    began, used = state[at + 2], state[at + 3]
  end
  remaining[2 * order - 1], remaining[2 * order] = math.max(0, limit - used - amount), began
  if extending and amount == 0 then
    return
  end
  if used + amount > limit then
    local resets = began + 1000 * length
    local verdict = amount > limit and TOO_LARGE or (resets - now > MINUTE_MS and LASTING or RATE)
    refuse(verdict, 'n', order, narrowness, limit, used, 0, amount, limit - used, resets)
  end
  state[at], state[at + 1], state[at + 2], state[at + 3] = code, length, began, used + amount
  starts[order] = began % 4294967296
end

-- Every scope: live holds and windows. limits are from a place on, narrowness bytes of scopes from another.
local function check_scopes(tail, flags, scopes, base, values, limits, place, narrow)
  local order, counted, slots = 0, 0, flags + scopes
  for scope = 1, scopes do
    local index, flag, narrowness = base + scope, string.byte(tail, flags + scope - 1), string.byte(narrow, scope)
    local packed = vals[index] or '\0\0\0\0'
    local state = {struct.unpack('<I4' .. string.rep('BI4I6i8', (#packed - 4) / 19), packed)}
    state[#state] = nil -- where unpack stopped
    if flag >= 128 then
      local limit, live = limits[place], state[1]
      place, counted = place + 1, counted + 1
      if not extending then
        if live + 1 > limit then
          refuse(limit < 1 and TOO_LARGE or CONCURRENCY, 'c', counted, narrowness, limit, 0, live, 1, limit - live, 0)
        end
        state[1] = live + 1
      end
    end
    for _ = 1, flag % 128 do
      local code, length, amount = string.byte(tail, slots, slots + 2)
      order, slots = order + 1, slots + 3
      check_window(state, order, code, values[length], values[amount], limits[place], narrowness)
      place = place + 1
    end
    vals[index] = struct.pack('<I4' .. string.rep('BI4I6i8', (#state - 1) / 4), unpack(state))
    dirty[index] = true
  end
end

-- Check a whole demand; vals holds its fields after base, in the tail's order. A repeat asks for nothing, only to see.
local function check_demand(tail, packed_limits, base, repeated)
  local values, counts = read_values(tail, 1)
  local wallets, budgets, count, scopes, windows = string.byte(tail, counts, counts + 4)
  if repeated then
    for index = 1, #values do
      values[index] = 0
    end
  end
  local plain = #packed_limits - budgets - scopes
  local limits = {struct.unpack('<' .. string.rep('I8', plain / 8), packed_limits)}
  for wallet = 1, wallets do
    local amount = string.byte(tail, counts + 4 + 2 * wallet)
    check_wallet(base + wallet, wallet, values[amount], limits[wallet])
  end
  local places = counts + 5 + 2 * wallets
  local flags = places + 4 * budgets
  local numbers = flags + scopes + 3 * windows
  for budget = 1, budgets do
    local amount, _, begins, bucket = string.byte(tail, places + 4 * budget - 4, places + 4 * budget - 1)
    if not (extending and values[amount] == 0) then
      local number = struct.unpack('<I4', tail, numbers + 4 * budget - 4)
      local place = wallets + 2 * budget
      check_budget(base + wallets + bucket, budget, number, values[begins], values[amount], limits[place - 1],
        limits[place], string.byte(packed_limits, plain + budget))
    end
  end
  local narrow = string.sub(packed_limits, plain + budgets + 1)
  check_scopes(tail, flags, scopes, base + wallets + count, values, limits, wallets + 2 * budgets + 1, narrow)
end

-- The windows' starts as a hold keeps them; those that an extend did not touch stay as they are.
local function packed_starts()
  local count = #remaining / 2
  for order = 1, count do
    if not starts[order] then
      starts[order] = struct.unpack('<I4', extending, tail_of(extending) - 4 * (count - order + 1))
    end
  end
  return struct.pack('<' .. string.rep('I4', count), unpack(starts))
end

-- The reply to a demand that fits or is refused.
local function reply_to_demand(hold_version, created, record)
  if refusal then
    return 'F' .. refusal .. struct.pack('<I8B', now, crossings) .. crossed
  end
  return 'R' .. struct.pack('<I8I8I2B', now, created, hold_version, takes) .. taken
    .. struct.pack('<B' .. string.rep('i8I8I2I6', #views / 4), #views / 4, unpack(views))
    .. struct.pack('<B' .. string.rep('I8I8', #remaining / 2), #remaining / 2, unpack(remaining))
    .. struct.pack('<B', crossings) .. crossed .. record
end
