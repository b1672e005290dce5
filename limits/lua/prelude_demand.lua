-- Shared locals of reserve and extend: check a demand against every slot and prepare what taking it would write.
--
-- The checks read vals and put the outcome back into vals; nothing reaches Redis until the script, finding no refusal,
-- writes all of it. A demand is a tail (see prelude.lua) and its limits, packed in the tail's order: per wallet
-- I8 minimum; per budget I8 limit, I8 ends ms, B narrowness (0 account, 1 team, 2 user, 3 key); per scope B narrowness,
-- I8 concurrency limit if the scope counts live holds, I8 limit per window.

local LASTING, HELD, RATE, CONCURRENCY, TOO_LARGE = 1, 2, 3, 4, 5
local MINUTE_MS = 60000
local refusal, refusal_rank -- the deciding slot's report, once one refuses
local extending -- the stored hold, when an open hold grows: slots that ask for nothing are not checked
local meta
local takes, taken = 0, '' -- what comes from which grant: count and packed takes
local windows, starts = 0, '' -- the windows' starts: count and packed (ms mod 2^32)
local views, remaining = '', '' -- the reply's part about wallets and windows
local thresholds, crossed, crossings = '', '', 0
local scopes_counted = 0

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
  local warned_period, level = struct.unpack('<I6I2', vals[index])
  level = warned_period == meta[PERIOD] and level or 0
  local reached = level
  for at = 1, #thresholds, 2 do
    local threshold = struct.unpack('<I2', thresholds, at)
    if threshold > level and threshold <= spent then
      crossed, crossings, reached = crossed .. struct.pack('<BI2', wallet, threshold), crossings + 1, threshold
    end
  end
  if reached > level then
    vals[index] = struct.pack('<I6I2', meta[PERIOD], reached) .. string.sub(vals[index], 9)
    redis.call('HSET', KEYS[1], names[index], vals[index])
  end
end

-- One wallet: what is open, whether the amount fits, and which grants it comes from, in burn order.
local function check_wallet(index, wallet, amount, minimum)
  local packed = vals[index] or EMPTY_WALLET
  local fresh = packed
  local capacity, posted, held, resets, left, first = 0, 0, 0, 0, amount, not extending
  for at = 9, #packed, 54 do
    local granted, counted, pending, on_hold, begins, expires = struct.unpack('<i8i8i8i8I6I6', packed, at + 6)
    if begins <= now and (expires == 0 or expires > now) then
      local free = granted - counted - pending - on_hold
      capacity, posted, held = capacity + granted, posted + counted + pending, held + on_hold
      if expires > 0 and (resets == 0 or expires < resets) then
        resets = expires
      end
      -- A hold of nothing still names a grant, for what the call may cost above it.
      if (left > 0 and free > 0) or (first and amount == 0) then
        local part = math.min(left, math.max(free, 0))
        takes, taken = takes + 1, taken .. string.sub(packed, at + 2, at + 5) .. struct.pack('<I8B', part, wallet)
        fresh = string.sub(fresh, 1, at + 29) .. struct.pack('<i8', on_hold + part) .. string.sub(fresh, at + 38)
        left, first = left - part, false
      end
    end
  end
  local available, need = capacity - posted - held, math.max(amount, minimum)
  if available < need and not (extending and amount == 0) then
    local verdict = need > capacity - posted and LASTING or HELD
    verdict = (amount > capacity and capacity > 0) and TOO_LARGE or verdict
    refuse(verdict, 'w', wallet, 0, capacity, posted, held, need, available, resets)
  end
  local used = permille(posted + held + amount, capacity)
  views = views .. struct.pack('<i8I8I2I6', available - amount, capacity, used, resets)
  if #thresholds > 0 and capacity > 0 and posted > 0 then
    check_warnings(index, wallet, permille(posted, capacity))
    fresh = string.sub(vals[index], 1, 8) .. string.sub(fresh, 9)
  end
  vals[index], dirty[index] = fresh, true
end

-- One budget period. One that is older than what Redis knows was left behind, and is refused.
local function check_budget(index, number, key, amount, limit, ends, narrowness)
  local packed = vals[index] or ''
  local at = find_record(packed, key, 1, 34)
  local counted, pending, held = 0, 0, 0
  if at then
    counted, pending, held = struct.unpack('<i8i8i8', packed, at + 10)
  elseif has_later(packed, key) then
    counted = limit
  end
  if extending and amount == 0 then
    return
  end
  local used = counted + pending
  if used + held + amount > limit then
    local verdict = amount > limit and TOO_LARGE or (amount > limit - used and LASTING or HELD)
    refuse(verdict, 'b', number, narrowness, limit, used, held, amount, limit - used - held, ends)
  end
  if at then
    vals[index] = string.sub(packed, 1, at + 25) .. struct.pack('<i8', held + amount) .. string.sub(packed, at + 34)
  else
    vals[index] = compact_bucket(packed .. key .. struct.pack('<i8i8i8', 0, 0, amount))
    know_bucket(meta, key)
  end
  dirty[index] = true
end

-- One window: fixed, aligned to its first use, rolling forward only.
local function check_window(index, key, amount, limit, narrowness)
  local packed = vals[index]
  local length = struct.unpack('<xI4', key) * 1000
  local at = find_record(packed, key, 5, 19)
  local began, used = now, 0
  if at then
    local start, so_far = struct.unpack('<I6i8', packed, at + 5)
    if now < start + length then
      began, used = start, so_far
    end
  end
  windows = windows + 1
  local idle = extending and amount == 0
  if used + amount > limit and not idle then
    local resets = began + length
    local verdict = amount > limit and TOO_LARGE or (resets - now > MINUTE_MS and LASTING or RATE)
    refuse(verdict, 'n', windows, narrowness, limit, used, 0, amount, limit - used, resets)
  end
  remaining = remaining .. struct.pack('<I8I8', math.max(0, limit - used - amount), began)
  if idle then
    local kept = tail_of(extending) - 4 * string.byte(extending, 25) + 4 * windows
    starts = starts .. string.sub(extending, kept - 4, kept - 1)
    return
  end
  starts = starts .. struct.pack('<I4', began % 4294967296)
  local state = key .. struct.pack('<I6i8', began, used + amount)
  vals[index] = at and string.sub(packed, 1, at - 1) .. state .. string.sub(packed, at + 19) or packed .. state
end

-- Every scope of the tail from a position on: live holds and windows.
local function check_scopes(tail, at, base, values, limits, from)
  local count, name, flags, key, amount, narrowness, limit
  count, at = struct.unpack('<B', tail, at)
  for index = base + 1, base + count do
    name, flags, at = struct.unpack('<Bc0B', tail, at)
    narrowness, from = struct.unpack('<B', limits, from)
    vals[index], dirty[index] = vals[index] or EMPTY_SCOPE, true
    if flags >= 128 then
      limit, from = struct.unpack('<I8', limits, from)
      local live = struct.unpack('<I4', vals[index])
      scopes_counted = scopes_counted + 1
      if not extending then
        if live + 1 > limit then
          refuse(limit < 1 and TOO_LARGE or CONCURRENCY, 'c', scopes_counted, narrowness, limit, 0, live, 1, limit - live, 0)
        end
        vals[index] = struct.pack('<I4', live + 1) .. string.sub(vals[index], 5)
      end
    end
    for _ = 1, flags % 128 do
      key, amount, at = struct.unpack('<c5B', tail, at)
      limit, from = struct.unpack('<I8', limits, from)
      check_window(index, key, values[amount], limit, narrowness)
    end
  end
end

-- Check a whole demand; vals holds its fields after base, in the tail's order. A repeat asks for nothing, only to see.
local function check_demand(tail, limits, base, repeated)
  local values, at = read_values(tail, 1)
  if repeated then
    for index = 1, #values do
      values[index] = 0
    end
  end
  local from, count, buckets, name, amount, minimum, key, bucket, limit, ends, narrowness = 1
  count, at = struct.unpack('<B', tail, at)
  for wallet = 1, count do
    name, amount, at = struct.unpack('<Bc0xB', tail, at)
    minimum, from = struct.unpack('<I8', limits, from)
    check_wallet(base + wallet, wallet, values[amount], minimum)
  end
  base = base + count
  count, buckets, at = struct.unpack('<BB', tail, at)
  for number = 1, count do
    key, amount, bucket, at = struct.unpack('<c10BxB', tail, at)
    limit, ends, narrowness, from = struct.unpack('<I8I8B', limits, from)
    check_budget(base + bucket, number, key, values[amount], limit, ends, narrowness)
  end
  check_scopes(tail, at, base + buckets, values, limits, from)
end

-- The reply to a demand that fits or is refused.
local function reply_to_demand(hold_version, created, record)
  if refusal then
    return 'F' .. refusal .. struct.pack('<I8B', now, crossings) .. crossed
  end
  return 'R' .. struct.pack('<I8I8I2B', now, created, hold_version, takes) .. taken
    .. struct.pack('<B', #views / 24) .. views .. struct.pack('<B', windows) .. remaining
    .. struct.pack('<B', crossings) .. crossed .. record
end
