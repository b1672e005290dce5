-- Shared locals of reserve and extend: check a demand against every slot and prepare what taking it would write.
--
-- The checks read vals and put the outcome back into vals; nothing reaches Redis until the script, finding no refusal,
-- writes all of it. A demand is a tail (see prelude.lua) and its limits: I8 each, in the tail's order: per wallet its
-- minimum; per budget its limit and its end in ms; per scope its concurrency limit if it counts live holds; per window
-- its limit; then a byte each: the narrowness (0 account, 1 team, 2 user, 3 key) of each budget and of each scope.

local LASTING, HELD, RATE, CONCURRENCY, TOO_LARGE = 1, 2, 3, 4, 5

local MINUTE_MS = 60000

local TAKES_MAX = 128 -- the grants that a hold's first wallets may name; each further wallet names one

local refusal, refusal_rank -- the deciding slot's report, once one refuses
local extending -- the stored hold, when an open hold grows: slots that ask for nothing are not checked
local account_meta -- meta of the account
local takes_count, taken = 0, '' -- what comes from which grant: count and packed takes
local views, remaining, window_starts = {}, {}, {} -- per wallet and per window, for the reply and the hold
local thresholds, lowest, crossed, crossings = '', nil, '', 0

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

-- Report thresholds (permille of the capacity that is posted) passed for the first time in this period. They are
-- remembered at once, also when the call is then refused.
local function check_warnings(index, wallet, spent)
  local packed = vals[index]
  local warned_period, level = struct.unpack('<I6I2', packed)
  level = warned_period == account_meta[PERIOD] and level or 0
  local reached = level
  for at = 1, #thresholds, 2 do
    local threshold = struct.unpack('<I2', thresholds, at)
    if threshold > level and threshold <= spent then
      crossed, crossings, reached = crossed .. struct.pack('<BI2', wallet, threshold), crossings + 1, threshold
    end
  end
  if reached > level then
    vals[index] = struct.pack('<I6I2', account_meta[PERIOD], reached) .. string.sub(packed, 9)
    local args, list = {names[index], vals[index]}, 'x' .. string.sub(names[index], 2)
    for other = index + 1, #names do
      if names[other] == list then -- sums made anew a moment ago: the field and its list belong together
        args[3], args[4] = list, vals[other]
      end
    end
    redis.call('HSET', KEYS[1], unpack(args))
  end
  return struct.unpack('<I6I2', vals[index])
end

-- Take an amount from a wallet's open grants in burn order, from the burning one on. A hold of nothing names the first
-- open grant, for what the call may cost above it. Of very many grants the last one that fits into the hold bears the
-- rest, as it would bear an overrun.
local function take_listed(index, wallet, amount)
  local state, list, place = read_wallet(KEYS[1], index)
  local at, left, last = amount > 0 and 54 * state[PLACE] - 53 or 1, amount, 0
  while at > 0 and at < #list and (left > 0 or last == 0) do
    local number, granted, counted, pending, held, begins, expires = struct.unpack('<I4i8i8i8i8I6I6', list, at + 2)
    local free = granted - counted - pending - held
    if (free > 0 or amount == 0) and begins <= now and (expires == 0 or expires > now) then
      local part = (free < left and takes_count < TAKES_MAX - 1 and amount > 0) and free or left
      takes_count, taken = takes_count + 1, taken .. struct.pack(TAKE, number, part, wallet)
      list = string.sub(list, 1, at + 29) .. struct.pack('<i8', held + part) .. string.sub(list, at + 38)
      left, last = left - part, (at + 53) / 54
    end
    at = at + 54
  end
  state[ON_HOLD] = state[ON_HOLD] + amount
  burn(state, list, amount > 0 and last or state[PLACE])
  keep_wallet(index, state, place, list)
end

-- One wallet: what is open, whether the amount fits, and which grants it comes from.
local function check_wallet(index, wallet, amount, minimum)
  if vals[index] then
    local from, till = struct.unpack('<I6I6', vals[index], 9)
    if now < from or now >= till then
      sum_up(KEYS[1], index)
    end
  end
  local warned, level, from, till, capacity, resets, posted, held, place, burning, granted, counted, pending, on_hold
  if vals[index] then
    warned, level, from, till, capacity, resets, posted, held, place, burning, granted, counted, pending, on_hold =
      struct.unpack(WALLET, vals[index])
    if lowest and posted > 0 and capacity > 0 and posted * 1001 >= lowest * capacity then
      warned, level = check_warnings(index, wallet, permille(posted, capacity))
    end
  else
    capacity, resets, posted, held = 0, 0, 0, 0
  end
  local available, need, at = capacity - posted - held, amount > minimum and amount or minimum, 3 * wallet
  views[at - 2], views[at - 1], views[at] = available - amount, capacity, resets
  if extending and amount == 0 then
    return
  elseif available < need then
    local verdict = need > capacity - posted and LASTING or HELD
    verdict = (amount > capacity and capacity > 0) and TOO_LARGE or verdict
    refuse(verdict, 'w', wallet, 0, capacity, posted, held, need, available, resets)
  elseif not place then
    return -- a wallet that nobody knows, asked for nothing
  elseif place == 0 or amount == 0 or granted - counted - pending - on_hold < amount then
    take_listed(index, wallet, amount)
  else
    takes_count, taken = takes_count + 1, taken .. struct.pack(TAKE, burning, amount, wallet)
    vals[index] = struct.pack(WALLET, warned, level, from, till, capacity, resets, posted, held + amount, place, burning,
      granted, counted, pending, on_hold + amount)
    dirty[index] = true
  end
end

-- Budgets, bucket by bucket from a place on: one that is older than what Redis knows was left behind, and is refused.
-- limits are from a place on, too.
local function check_budgets(tail, kinds, place, count, base, values, amounts, limits, first, narrow)
  local order = 0
  for index = base + 1, base + count do
    local eighth, members = struct.unpack('<I3B', tail, place)
    local seek = 1 -- mostly periods are asked for in their order
    for slot = place + 4, place + 2 * members + 2, 2 do
      local kind, low = string.byte(tail, slot, slot + 1)
      local number, limit, used, held = 8 * eighth + low, limits[first], 0, 0
      local amount, begins = amounts[kinds[3 * kind - 2]], values[kinds[3 * kind]]
      order = order + 1
      if not (extending and amount == 0) then
        local bucket, at = buckets[index] or open_bucket(index), seek
        if bucket[at] ~= number or bucket[at + 1] ~= begins then
          at = find_period(bucket, number, begins)
        end
        if at then
          seek = at + 5
          used, held = bucket[at + 2] + bucket[at + 3], bucket[at + 4]
          bucket[at + 4] = held + amount
        elseif has_later(bucket, number, begins) then
          used = limit
        else
          add_period(account_meta, bucket, number, begins, 0, 0, amount)
        end
        if used + held + amount > limit then
          local verdict = amount > limit and TOO_LARGE or (amount > limit - used and LASTING or HELD)
          local left = limit - used - held
          refuse(verdict, 'b', order, string.byte(narrow, order), limit, used, held, amount, left, limits[first + 1])
        end
      end
      first = first + 2
    end
    place = place + 4 + 2 * members
  end
end

-- Whether a window is full, and for how long.
local function refuse_window(order, narrowness, limit, used, amount, resets)
  local verdict = amount > limit and TOO_LARGE or (resets - now > MINUTE_MS and LASTING or RATE)
  refuse(verdict, 'n', order, narrowness, limit, used, 0, amount, limit - used, resets)
end

-- Every scope: live holds, then windows: fixed, aligned to their first use, rolling forward only. slots: where the windows'
-- kinds are. limits are from a place on, narrowness bytes of scopes from another.
local function check_scopes(tail, flags, scopes, slots, kinds, base, values, amounts, limits, place, narrow, narrow_from)
  local order, counted = 0, 0
  for scope = 1, scopes do
    local index, flag = base + scope, string.byte(tail, flags + scope - 1)
    local packed = vals[index] or '\0\0\0\0'
    local count = (#packed - 4) / 19
    local state = {struct.unpack(scope_format(count), packed)}
    state[4 * count + 2] = nil -- where unpack stopped
    if flag >= 128 then
      local limit, live = limits[place], state[1]
      flag, place, counted = flag - 128, place + 1, counted + 1
      if not extending then
        if live + 1 > limit then
          local verdict, narrowness = limit < 1 and TOO_LARGE or CONCURRENCY, string.byte(narrow, narrow_from + scope)
          refuse(verdict, 'c', counted, narrowness, limit, 0, live, 1, limit - live, 0)
        end
        state[1] = live + 1
      end
    end
    for _ = 1, flag do
      local kind = 3 * string.byte(tail, slots)
      local code, length, amount = kinds[kind - 2], values[kinds[kind - 1]], amounts[kinds[kind]]
      local limit, began, used, at = limits[place], now, 0, 2
      order, slots, place = order + 1, slots + 1, place + 1
      while state[at] and (state[at] ~= code or state[at + 1] ~= length) do
        at = at + 4
      end
      if state[at] and now < state[at + 2] + 1000 * length then
        began, used = state[at + 2], state[at + 3]
      end
      local left = limit - used - amount
      remaining[2 * order - 1], remaining[2 * order] = left > 0 and left or 0, began
      if amount > 0 or not extending then
        if left < 0 then
          refuse_window(order, string.byte(narrow, narrow_from + scope), limit, used, amount, began + 1000 * length)
        end
        state[at], state[at + 1], state[at + 2], state[at + 3] = code, length, began, used + amount
        window_starts[order] = began % 16777216
      end
    end
    vals[index], dirty[index] = struct.pack(scope_format((#state - 1) / 4), unpack(state)), true
  end
  if place ~= #limits then -- the last of them is where unpack stopped
    reject('the limits do not fit the slots')
  end
end

-- Check a whole demand; vals holds its fields after base, in the tail's order. A repeat asks for nothing, only to see.
local function check_demand(tail, packed_limits, base, repeated)
  local values, counts = read_values(tail, 1)
  local wallets, budget_kinds, budgets, count, scopes, window_kinds = string.byte(tail, counts, counts + 5)
  local amounts = values
  if repeated then
    amounts = {}
    for index = 1, #values do
      amounts[index] = 0
    end
  elseif #thresholds > 0 then
    lowest = struct.unpack('<I2', thresholds)
  end
  local plain = (#packed_limits - budgets - scopes) / 8
  if plain % 1 > 0 then
    reject('the limits do not fit the slots')
  end
  local limits = {struct.unpack('<' .. string.rep('I8', plain), packed_limits)}
  for wallet = 1, wallets do
    local amount = string.byte(tail, counts + 6 + 2 * wallet)
    check_wallet(base + wallet, wallet, amounts[amount], limits[wallet])
  end
  local narrow, kinds_at = string.sub(packed_limits, 8 * plain + 1), counts + 7 + 2 * wallets
  local flags = kinds_at + 3 * budget_kinds + 3 * window_kinds
  local place = flags + scopes
  base = base + wallets
  if budgets > 0 then
    local kinds = read_kinds(tail, kinds_at, budget_kinds)
    check_budgets(tail, kinds, place, count, base, values, amounts, limits, wallets + 1, narrow)
  end
  local kinds, first = read_kinds(tail, flags - 3 * window_kinds, window_kinds), wallets + 2 * budgets + 1
  local slots = place + 4 * count + 2 * budgets
  check_scopes(tail, flags, scopes, slots, kinds, base + count, values, amounts, limits, first, narrow, budgets)
end

-- The windows' starts as a hold keeps them; those that an extend did not touch stay as they are.
local function packed_starts()
  local count = #remaining / 2
  for order = 1, extending and count or 0 do
    if not window_starts[order] then
      window_starts[order] = struct.unpack('<I3', extending, tail_of(extending) - 3 * (count - order + 1))
    end
  end
  return struct.pack('<' .. string.rep('I3', count), unpack(window_starts))
end

-- The reply to a demand that fits or is refused.
local function reply_to_demand(hold_version, created, record)
  if refusal then
    return 'F' .. refusal .. struct.pack('<I8B', now, crossings) .. crossed
  end
  local wallets, windows = #views / 3, #remaining / 2
  return 'R' .. struct.pack('<I8I8I2B', now, created, hold_version, takes_count) .. taken
    .. struct.pack('<B' .. string.rep('i8I8I6', wallets), wallets, unpack(views))
    .. struct.pack('<B' .. string.rep('I8I8', windows), windows, unpack(remaining))
    .. struct.pack('<B', crossings) .. crossed .. record
end
