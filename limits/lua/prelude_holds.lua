-- Shared locals about budgets and holds: how charges and holds move on and off the account's fields.
-- Layouts are in prelude.lua.

-- The periods in a field of budgets.
local function open_bucket(index)
  local bucket = buckets[index]
  if not bucket then
    local packed = vals[index] or ''
    local count = #packed / 34
    bucket = {struct.unpack('<' .. string.rep('I4I6i8i8i8', count), packed)}
    bucket[5 * count + 1] = nil -- where unpack stopped
    buckets[index] = bucket
  end
  return bucket
end

local function pack_bucket(bucket)
  return struct.pack('<' .. string.rep('I4I6i8i8i8', #bucket / 5), unpack(bucket))
end

-- The place of a period in a bucket.
local function find_period(bucket, number, starts)
  for at = 1, #bucket, 5 do
    if bucket[at] == number and bucket[at + 1] == starts then
      return at
    end
  end
end

-- Whether a bucket knows a later period of this budget.
local function has_later(bucket, number, starts)
  for at = 1, #bucket, 5 do
    if bucket[at] == number and bucket[at + 1] > starts then
      return true
    end
  end
  return false
end

-- Drop a budget's periods that have a later one and owe nothing.
local function drop_ended(bucket, number)
  local at = 1
  while at < #bucket do
    local owes = bucket[at + 3] ~= 0 or bucket[at + 4] ~= 0
    if bucket[at] == number and not owes and has_later(bucket, number, bucket[at + 1]) then
      for _ = 1, 5 do
        table.remove(bucket, at)
      end
    else
      at = at + 5
    end
  end
end

-- A new period of a budget. Periods before it that owe nothing are over.
local function add_period(meta, bucket, number, starts, counted, pending, held)
  local at = #bucket
  bucket[at + 1], bucket[at + 2], bucket[at + 3], bucket[at + 4], bucket[at + 5] = number, starts, counted, pending, held
  drop_ended(bucket, number)
  meta[BUCKETS] = math.max(meta[BUCKETS], math.floor(number / 8) + 1)
end

-- Change one budget period, looked for at a place first. Answers the place behind it.
local function bump_period(meta, index, at, number, starts, counted, pending, held, create)
  local bucket = buckets[index] or open_bucket(index)
  if bucket[at] ~= number or bucket[at + 1] ~= starts then
    at = find_period(bucket, number, starts)
  end
  if at then
    bucket[at + 2], bucket[at + 3], bucket[at + 4] = bucket[at + 2] + counted, bucket[at + 3] + pending, bucket[at + 4] + held
    if bucket[at + 2] + bucket[at + 3] > AMOUNT_MAX or bucket[at + 4] > AMOUNT_MAX then
      reject('a sum is out of range')
    end
  elseif create then
    add_period(meta, bucket, number, starts, counted, pending, held)
  end
  return at and at + 5 or 1
end

-- Write every changed field of the account.
local function write_fields(account)
  for index, bucket in pairs(buckets) do
    vals[index], dirty[index] = pack_bucket(bucket), true
  end
  local args, count = {}, 0
  for index = 1, #names do
    if dirty[index] then
      args[count + 1], args[count + 2], count = names[index], vals[index], count + 2
    end
  end
  if count > 0 then
    redis.call('HSET', account, unpack(args))
  end
end

-- A vector, unpacked: its lines, flat, three values each: field, number of the grant, amount (false: done already); and its
-- budgets, flat, four values each: field, number, start, amount.
local function read_vector(account, vector)
  local lines, periods = {}, {}
  local wallets, at = struct.unpack('<B', vector)
  local name, number, amount, count, starts
  for _ = 1, wallets do
    name, count, at = struct.unpack('<Bc0B', vector, at)
    local index = locate(account, 'w' .. name)
    for line = #lines + 1, #lines + 3 * count, 3 do
      lines[line] = index
      lines[line + 1], lines[line + 2], at = struct.unpack('<I4i8', vector, at)
    end
  end
  count, at = struct.unpack('<B', vector, at)
  for period = 1, 4 * count, 4 do
    number, starts, amount, at = struct.unpack('<I4I6i8', vector, at)
    periods[period], periods[period + 1] = locate(account, 'b' .. math.floor(number / 8)), number
    periods[period + 2], periods[period + 3] = starts, amount
  end
  return lines, periods
end

-- The same from coded lines, in which the caller has said the fields by their indices. Answers where they end too.
local function read_lines(packed, at)
  local count = string.byte(packed, at)
  local lines = {struct.unpack('<' .. string.rep('BI4i8', count), packed, at + 1)}
  at = at + 1 + 13 * count
  count = string.byte(packed, at)
  return lines, {struct.unpack('<' .. string.rep('BI4I6i8', count), packed, at + 1)}, at + 1 + 19 * count
end

-- Add an unpacked vector, times a sign each, to counted and to pending. Placeholders only for what raises pending.
local function add_vector(account, meta, lines, periods, counted, pending)
  for at = 1, #lines - 2, 3 do
    local index, number, amount = lines[at], lines[at + 1], lines[at + 2]
    if amount then
      if not vals[index] and pending > 0 then
        know_wallet(account, string.sub(names[index], 2))
      end
      if vals[index] or pending > 0 then
        bump_grant(account, index, number, counted * amount, pending * amount, 0, pending > 0)
      end
    end
  end
  local seek = 1
  for at = 1, #periods - 3, 4 do
    local index, number, starts, amount = periods[at], periods[at + 1], periods[at + 2], periods[at + 3]
    if amount ~= 0 then
      -- A loaded account's missing period is a known zero; one with a later period is over and needs no count.
      local create = pending > 0 or (counted > 0 and not has_later(buckets[index] or open_bucket(index), number, starts))
      seek = bump_period(meta, index, seek, number, starts, counted * amount, pending * amount, 0, create)
    end
  end
end

-- Move the watermark over the deltas kept above it, as long as there is no gap.
local function absorb(account, meta)
  while meta[KEPT_COUNT] > 0 and redis.call('HDEL', account, 'k' .. string.format('%.0f', meta[SEQ] + 1)) == 1 do
    meta[SEQ], meta[KEPT_COUNT] = meta[SEQ] + 1, meta[KEPT_COUNT] - 1
  end
end

-- The values of a tail that starts at a position, and where its counts begin.
local function read_values(packed, at)
  local blocks = string.byte(packed, at)
  if blocks < 128 then
    local values = {struct.unpack('<I6I6I6I6', packed, at + 1)}
    for block = 2, blocks do
      local first = 4 * block - 3
      values[first], values[first + 1], values[first + 2], values[first + 3] =
        struct.unpack('<I6I6I6I6', packed, at + 24 * block - 23)
    end
    return values, at + 1 + 24 * blocks
  end
  local count = 4 * (blocks - 128)
  local values = {struct.unpack('<' .. string.rep('I8', count), packed, at + 1)}
  for index = 1, count do
    if values[index] > AMOUNT_MAX then
      reject('an amount is out of range')
    end
  end
  return values, at + 1 + 8 * count
end

-- Where a hold's tail begins.
local function tail_of(hold)
  local takes, windows = string.byte(hold, 10, 11)
  return 12 + 12 * takes + 3 * windows
end

-- What a tail's kinds say, three bytes each: the kinds from a position on, and how many.
local function read_kinds(packed, at, count)
  return {string.byte(packed, at, at + 3 * count - 1)}
end

-- The fields that a hold's slots live in, in the tail's order: wallets, buckets, scopes. Answers where its note begins too.
local function fields_of(hold)
  local counts = tail_of(hold)
  local values = string.byte(hold, counts)
  counts = counts + 1 + (values < 128 and 24 * values or 32 * (values - 128))
  local wallets, budget_kinds, budgets, count, scopes, window_kinds, windows = string.byte(hold, counts, counts + 6)
  local bucket_at = counts + 7 + 2 * wallets + 3 * budget_kinds + 3 * window_kinds + scopes
  local list, at, name = {}, bucket_at + 4 * count + 2 * budgets + windows, nil
  for index = 1, wallets do
    name, at = struct.unpack('<Bc0', hold, at)
    list[index] = 'w' .. name
  end
  for index = wallets + 1, wallets + count do
    local eighth, members = struct.unpack('<I3B', hold, bucket_at)
    list[index], bucket_at = 'b' .. eighth, bucket_at + 4 + 2 * members
  end
  for index = wallets + count + 1, wallets + count + scopes do
    local letter = string.byte(hold, at)
    if letter < 97 then
      name, at = struct.unpack('<c17', hold, at)
    elseif letter == 97 then
      name, at = 'a', at + 1
    else
      name, at = struct.unpack('<Bc0', hold, at + 1)
      name = string.char(letter) .. name
    end
    list[index] = 's' .. name
  end
  return list, at
end

-- The format of a scope's field with so many windows.
local function scope_format(windows)
  return windows == 2 and '<I4BI4I6i8BI4I6i8' or '<I4' .. string.rep('BI4I6i8', windows)
end

-- What a scope's window holds after it was used otherwise than reserved. Only the window that the amount was taken from:
-- an amount belongs to its window, and stays where another has begun since.
local function correct_window(packed, at, code, length, began, change)
  local c, l, starts, used = 0, 0, 0, 0
  if at < #packed then
    c, l, starts, used = struct.unpack('<BI4I6i8', packed, at)
  end
  if c ~= code or l ~= length then -- not at its usual place
    at = find_record(packed, struct.pack('<BI4', code, length), 5, 19)
    if not at then
      return packed
    end
    starts, used = struct.unpack('<I6i8', packed, at + 5)
  end
  if starts % 16777216 ~= began then
    return packed
  end
  used = used + change
  return string.sub(packed, 1, at + 10) .. struct.pack('<i8', used > 0 and used or 0) .. string.sub(packed, at + 19)
end

-- Put a hold's live counts on (sign 1) or take them off (sign -1). actuals: nil leaves its windows as they are, else per
-- window what was used (-1: as reserved). starts, flags, slots: where the hold has its windows' starts, its scopes' flags,
-- its windows' kinds.
local function move_scopes(hold, starts, flags, scopes, slots, kinds, values, base, sign, actuals)
  local seen = 0
  for scope = 1, scopes do
    local index, flag = base + scope, string.byte(hold, flags + scope - 1)
    local packed = vals[index] or '\0\0\0\0'
    if flag >= 128 then
      flag, packed = flag - 128, struct.pack('<I4', struct.unpack('<I4', packed) + sign) .. string.sub(packed, 5)
    end
    for window = 1, actuals and flag or 0 do
      local used = actuals[seen + window]
      if used >= 0 then
        local kind = 3 * string.byte(hold, slots + seen + window - 1)
        local amount = values[kinds[kind]]
        if used ~= amount then
          local began = struct.unpack('<I3', hold, starts + 3 * (seen + window - 1))
          local code, length = kinds[kind - 2], values[kinds[kind - 1]]
          packed = correct_window(packed, 19 * window - 14, code, length, began, used - amount)
        end
      end
    end
    seen = seen + flag
    if packed ~= vals[index] then
      vals[index], dirty[index] = packed, true
    end
  end
end

-- Put a hold's slots on (sign 1) or take them off (sign -1) the fields after base. lines and periods: what goes to
-- pending of the same grants and budgets in the same step; what is done is taken out of them.
local function move_hold(account, meta, hold, base, sign, actuals, lines, periods)
  local takes, windows = string.byte(hold, 10, 11)
  local at, seek = 12, 1 -- mostly a charge's lines are in the order of its hold's takes
  for _ = 1, takes do
    local number, amount, wallet = struct.unpack(TAKE, hold, at)
    if lines[seek + 1] ~= number then
      seek = 1
      while lines[seek] and lines[seek + 1] ~= number do
        seek = seek + 3
      end
    end
    local pending = lines[seek + 2]
    bump_grant(account, base + wallet, number, 0, pending or 0, sign * amount, sign > 0 or pending)
    if pending then
      lines[seek + 2], seek = false, seek + 3
    end
    at = at + 12
  end
  local values, counts = read_values(hold, at + 3 * windows)
  local wallets, budget_kinds, _, count, scopes, window_kinds = string.byte(hold, counts, counts + 5)
  local place, line, moved, begun = counts + 7 + 2 * wallets, 0, {}, {}
  for kind = 1, budget_kinds do
    local amount, _, starts = string.byte(hold, place, place + 2)
    moved[kind], begun[kind], place = sign * values[amount], values[starts], place + 3
  end
  local kinds = actuals and window_kinds > 0 and {string.byte(hold, place, place + 3 * window_kinds - 1)}
  local flags = place + 3 * window_kinds
  place = flags + scopes
  for index = base + wallets + 1, base + wallets + count do
    local eighth, members = struct.unpack('<I3B', hold, place)
    local bucket, seek, first = buckets[index] or open_bucket(index), 1, 8 * eighth
    for slot = place + 4, place + 2 * members + 2, 2 do
      local kind, number = string.byte(hold, slot, slot + 1)
      local starts, held, pending = begun[kind], moved[kind], 0
      number, line = first + number, line + 4
      if periods[line - 2] == number and periods[line - 1] == starts then
        pending, periods[line] = periods[line], 0
      end
      if bucket[seek] == number and bucket[seek + 1] == starts then -- the usual way
        local p, h = bucket[seek + 3] + pending, bucket[seek + 4] + held
        if bucket[seek + 2] + p > AMOUNT_MAX or h > AMOUNT_MAX then
          reject('a sum is out of range')
        end
        bucket[seek + 3], bucket[seek + 4], seek = p, h, seek + 5
      else
        seek = bump_period(meta, index, seek, number, starts, 0, pending, held, held > 0 or pending > 0)
      end
    end
    place = place + 4 + 2 * members
  end
  move_scopes(hold, at, flags, scopes, place, kinds, values, base + wallets + count, sign, actuals)
end
