-- Shared locals about wallets: the sums over their open grants, the grant that burns now, and the list of all.
-- Layouts are in prelude.lua. Most calls touch only the grant that burns now: they never read the list.

-- A wallet's list with what the wallet's field knows better: the sums of the grant that burns now.
local function write_back(wallet, list)
  if wallet[PLACE] == 0 then
    return list
  end
  local at = 54 * wallet[PLACE] - 53
  return string.sub(list, 1, at + 13) .. struct.pack('<i8i8i8', wallet[COUNTED], wallet[PENDING], wallet[HELD_OF_IT])
    .. string.sub(list, at + 38)
end

-- Make the grant at a place of the list the one that burns now; 0 = none does.
local function burn(wallet, list, place)
  wallet[PLACE], wallet[NUMBER], wallet[AMOUNT], wallet[COUNTED], wallet[PENDING], wallet[HELD_OF_IT] = place, 0, 0, 0, 0, 0
  if place > 0 then
    wallet[NUMBER], wallet[AMOUNT], wallet[COUNTED], wallet[PENDING], wallet[HELD_OF_IT] =
      struct.unpack('<I4i8i8i8i8', list, 54 * place - 51)
  end
end

-- The wallet of a field and its list, as they are.
local function read_wallet(account, index)
  local place = locate(account, 'x' .. string.sub(names[index], 2))
  local wallet = vals[index] and {struct.unpack(WALLET, vals[index])} or {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
  return wallet, write_back(wallet, vals[place] or ''), place
end

local function keep_wallet(index, wallet, place, list)
  vals[index], dirty[index] = struct.pack(WALLET, unpack(wallet, 1, 14)), true
  vals[place], dirty[place] = list, true
end

-- Sums and the burning grant made anew: a grant has started or ended since, or the clock went back, or SQL spoke.
local function sum_up(account, index)
  local wallet, list, place = read_wallet(account, index)
  local from, till, capacity, resets, posted, held, first = 0, FOREVER, 0, 0, 0, 0, 0
  for at = 1, #list, 54 do
    local granted, counted, pending, on_hold, starts, expires = struct.unpack('<i8i8i8i8I6I6', list, at + 6)
    from = math.max(from, starts <= now and starts or 0, expires <= now and expires or 0)
    till = math.min(till, starts > now and starts or till, expires > now and expires or till)
    if starts <= now and (expires == 0 or expires > now) then
      capacity, posted, held = capacity + granted, posted + counted + pending, held + on_hold
      if expires > 0 and (resets == 0 or expires < resets) then
        resets = expires
      end
      if first == 0 and granted - counted - pending - on_hold > 0 then
        first = (at + 53) / 54
      end
    end
  end
  wallet[FROM], wallet[TILL], wallet[CAPACITY], wallet[RESETS] = from, till, capacity, resets
  wallet[POSTED], wallet[ON_HOLD] = posted, held
  burn(wallet, list, first)
  keep_wallet(index, wallet, place, list)
end

-- Change a grant of the list. One not known becomes a placeholder: amount 0, never open.
local function bump_listed(account, index, number, counted, pending, held, create)
  local wallet, list, place = read_wallet(account, index)
  local at = find_record(list, struct.pack('<c2I4', '\255G', number), 1, 54)
  local burning = wallet[PLACE]
  if at then
    local amount, c, p, h, starts, expires = struct.unpack('<i8i8i8i8I6I6', list, at + 6)
    c, p, h = c + counted, p + pending, h + held
    if c + p > AMOUNT_MAX or h > AMOUNT_MAX then
      reject('a sum is out of range')
    end
    list = string.sub(list, 1, at + 13) .. struct.pack('<i8i8i8', c, p, h) .. string.sub(list, at + 38)
    if now < wallet[FROM] or now >= wallet[TILL] then
      wallet[TILL] = 0
    elseif starts <= now and (expires == 0 or expires > now) then
      wallet[POSTED], wallet[ON_HOLD] = wallet[POSTED] + counted + pending, wallet[ON_HOLD] + held
      local here = (at + 53) / 54
      if amount - c - p - h > 0 and (burning == 0 or here < burning) then
        burning = here
      end
    end
  elseif create then
    list = list .. struct.pack('<c2I4i8i8i8i8I6I6i4', '\255G', number, 0, counted, pending, held, 0, 1, 0)
  else
    return
  end
  burn(wallet, list, burning)
  keep_wallet(index, wallet, place, list)
end

-- Change one grant of a wallet.
local function bump_grant(account, index, number, counted, pending, held, create)
  if vals[index] then
    local warned, level, from, till, capacity, resets, posted, on_hold, place, burning, amount, c, p, h =
      struct.unpack(WALLET, vals[index])
    if burning == number and place > 0 then -- open as long as the sums are valid, so that it is part of them
      c, p, h = c + counted, p + pending, h + held
      if c + p > AMOUNT_MAX or h > AMOUNT_MAX then
        reject('a sum is out of range')
      end
      vals[index] = struct.pack(WALLET, warned, level, from, till, capacity, resets, posted + counted + pending,
        on_hold + held, place, burning, amount, c, p, h)
      dirty[index] = true
      return
    end
  end
  bump_listed(account, index, number, counted, pending, held, create)
end
