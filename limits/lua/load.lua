-- Put a snapshot of SQL into an account that is stale: the only way for grants to enter Redis.
--
-- Flags: allow-oom
-- KEYS  1 the account (hash)  2 the partition's outbox (stream)  3 the partition's lease index (sorted set)
-- ARGV  1 policy (packed, see prelude.lua)
--       2 ticket under which the snapshot was asked for (string)
--       3 the snapshot, packed: I8 seq, I8 rev, I8 turn ms (0 = never), I8 period ms
--       4 wallets (count)
--       5… per wallet its name (string) and its grants in burn order, packed: I4 number, I8 amount in steps,
--          i8 counted in steps, I8 starts ms, I8 expires ms (0 = never), i4 priority
--       then per bucket of budgets its field (string) and its periods, packed: I4 number, I6 starts ms, i8 counted
-- Example  seq 12, one wallet, one grant: 1, and the account is live with watermark 12
-- Effect
--   * Refused, with nothing written, if the ticket does not stand or the snapshot is older than the watermark.
--   * counted := SQL's sums + kept deltas above its seq; watermark := its seq, then over kept deltas without a gap.
--   * Pending and held stay. Grants and wallets that SQL no longer names are closed, and gone once they owe nothing.
-- Reply  integer: 1 = loaded, 0 = refused
assert(#KEYS == 3 and #ARGV >= 4, 'load: 3 keys, 4 arguments or more')

local ACCOUNT, AT_ONCE = KEYS[1], 1000
local PERIOD_OF_SQL, WITHOUT_PENDING_AND_HELD = string.rep('.', 18), '%0' .. string.rep('\0', 16)
local seq, rev, turn, period = struct.unpack('<I8I8I8I8', ARGV[3])
local wallets = tonumber(ARGV[4])
read_clock()
local stamp = incarnation(KEYS[3], KEYS[2])
local found = redis.call('HMGET', ACCOUNT, 'm', 't', 'W')
local meta = found[1] and read_meta(found[1]) or new_meta(KEYS[3])
if found[2] ~= stamp .. ARGV[2] or meta[STAMP] == stamp or seq < meta[SEQ] then
  return 0
end

-- The fields of a list in order, read in portions: unpack has a limit.
local function read_all(list)
  local values = {}
  for first = 1, #list, AT_ONCE do
    local last = math.min(first + AT_ONCE - 1, #list)
    local part = redis.call('HMGET', ACCOUNT, unpack(list, first, last))
    for index = 1, #part do
      values[first + index - 1] = part[index]
    end
  end
  return values
end

-- What is open at one time must sum up to a number that is exact; a next period's grants do not count before it.
local function check_sum(grants, at_ms)
  local sum = 0
  for at = 1, #grants, 40 do
    local amount, begins, expires = struct.unpack('<I8xxxxxxxxI8I8', grants, at + 4)
    if begins <= at_ms and (expires == 0 or expires > at_ms) then
      sum = sum + amount
    end
  end
  if sum > AMOUNT_MAX then
    reject('the grants of a wallet are out of range')
  end
end

-- A wallet's list from SQL's grants and what Redis knows of pending and held.
local function merge_list(list, grants)
  local parts, named = {}, ''
  check_sum(grants, now)
  for at = 1, #grants, 40 do
    local key, amount, counted, begins, expires, priority = struct.unpack('<c4I8i8I8I8i4', grants, at)
    local pending, held = 0, 0
    local known = find_record(list, '\255G' .. key, 1, 54)
    if known then
      pending, held = struct.unpack('<i8i8', list, known + 22)
    end
    named = named .. key
    if begins > now then
      check_sum(grants, begins)
    end
    parts[#parts + 1] = '\255G' .. key
      .. struct.pack('<i8i8i8i8I6I6i4', amount, counted, pending, held, begins, expires, priority)
  end
  for at = 1, #list, 54 do
    local key, pending, held = string.sub(list, at + 2, at + 5), struct.unpack('<i8i8', list, at + 22)
    if (pending ~= 0 or held ~= 0) and not find_record(named, key, 1, 4) then
      parts[#parts + 1] = '\255G' .. key .. struct.pack('<i8i8i8i8I6I6i4', 0, 0, pending, held, 0, 1, 0)
    end
  end
  return table.concat(parts)
end

-- A bucket from SQL's periods and what Redis knows of pending and held.
local function merge_bucket(packed, periods)
  local fresh = string.gsub(periods, PERIOD_OF_SQL, WITHOUT_PENDING_AND_HELD)
  for at = 1, packed and #packed or 0, 34 do
    local pending, held = struct.unpack('<i8i8', packed, at + 18)
    if pending ~= 0 or held ~= 0 then
      local key, owed = string.sub(packed, at, at + 9), string.sub(packed, at + 18, at + 33)
      local known = find_record(fresh, key, 1, 34)
      if known then
        fresh = string.sub(fresh, 1, known + 17) .. owed .. string.sub(fresh, known + 34)
      else
        fresh = fresh .. key .. struct.pack('<i8', 0) .. owed
      end
    end
  end
  return fresh
end

-- Every wallet that SQL or Redis knows, merged; answers the list of wallets.
local function merge_wallets()
  local list, given = '', {}
  for index = 5, 3 + 2 * wallets, 2 do
    given['w' .. ARGV[index]] = ARGV[index + 1]
    names[#names + 1], list = 'w' .. ARGV[index], list .. string.char(#ARGV[index]) .. ARGV[index]
  end
  local at, known, name = 1, found[3] or '', nil
  while at <= #known do
    name, at = struct.unpack('<Bc0', known, at)
    if not given['w' .. name] then
      given['w' .. name] = ''
      names[#names + 1], list = 'w' .. name, list .. string.char(#name) .. name
    end
  end
  vals = read_all(names)
  for index = 1, #names do
    local wallet, before, place = read_wallet(ACCOUNT, index)
    local grants = merge_list(before, given[names[index]])
    -- What was warned of stays; the sums are made anew by the next reserve.
    wallet[TILL] = 0
    burn(wallet, grants, 0)
    keep_wallet(index, wallet, place, grants)
  end
  return list
end

-- Every bucket that SQL or Redis knows, merged.
local function merge_buckets()
  local list, given = {}, {}
  for index = 5 + 2 * wallets, #ARGV, 2 do
    given[ARGV[index]] = ARGV[index + 1]
    meta[BUCKETS] = math.max(meta[BUCKETS], tonumber(string.sub(ARGV[index], 2)) + 1)
  end
  for bucket = 0, meta[BUCKETS] - 1 do
    list[bucket + 1] = 'b' .. bucket
  end
  local before = read_all(list)
  for index = 1, #list do
    if before[index] or given[list[index]] then
      local place = #names + 1
      names[place], dirty[place] = list[index], true
      vals[place] = merge_bucket(before[index], given[list[index]] or '')
    end
  end
end

-- Count kept deltas above the snapshot, and forget those that it includes.
local function count_kept()
  local list, old = {}, {}
  for kept = meta[KEPT_LOW], meta[KEPT_TOP] do
    list[#list + 1] = 'k' .. string.format('%.0f', kept)
  end
  local vectors = read_all(list)
  for index = 1, #list do
    if vectors[index] and meta[KEPT_LOW] + index - 1 > seq then
      local lines, periods = read_vector(ACCOUNT, vectors[index])
      add_vector(ACCOUNT, meta, lines, periods, 1, 0)
    elseif vectors[index] then
      old[#old + 1] = list[index]
    end
  end
  for first = 1, #old, AT_ONCE do
    redis.call('HDEL', ACCOUNT, unpack(old, first, math.min(first + AT_ONCE - 1, #old)))
  end
  meta[KEPT_COUNT] = meta[KEPT_COUNT] - #old
end

names, vals, dirty, buckets = {}, {}, {}, {}
local list = merge_wallets()
merge_buckets()
if meta[KEPT_COUNT] > 0 then
  count_kept()
end
meta[STAMP], meta[REV], meta[SEQ], meta[TURN], meta[PERIOD] = stamp, rev, seq, turn, period
absorb(ACCOUNT, meta)
-- From here on only writes.
for index, bucket in pairs(buckets) do
  vals[index] = pack_bucket(bucket)
end
for first = 1, #names, AT_ONCE do
  local args = {}
  for index = first, math.min(first + AT_ONCE - 1, #names) do
    args[#args + 1], args[#args + 2] = names[index], vals[index]
  end
  redis.call('HSET', ACCOUNT, unpack(args))
end
redis.call('HSET', ACCOUNT, 'm', pack_meta(meta), 'W', list)
redis.call('HDEL', ACCOUNT, 't')
return 1
