-- What Redis holds of an account: for audit, for people, and for explain. Nothing is taken.
--
-- Flags: allow-oom
-- KEYS  1 the account (hash)  2 the partition's outbox (stream)  3 the partition's lease index (sorted set)
-- ARGV  1 policy (packed, see prelude.lua)
--       2 ticket: a nonce (string), kept if the account is found stale
--       3 most buckets of 8 budgets to show (count)
--       4… fields of the account (strings): m, then w<wallet> and x<wallet> per wallet asked for
-- Example  one wallet: {"P…", meta, wallet, list, bucket 0}
-- Effect
--   * None on a live account.
-- Reply  string "S" .. ticket: stale; else array: "P" .. I8 now ms, then the fields (packed, "" = absent), then buckets
assert(#KEYS == 3 and #ARGV >= 4, 'peek: 3 keys, 4 arguments or more')

read_clock()
local stamp = incarnation(KEYS[3], KEYS[2])
vals = redis.call('HMGET', KEYS[1], unpack(ARGV, 4))
local meta = vals[1] and read_meta(vals[1])
if not meta or meta[STAMP] ~= stamp then
  return 'S' .. ticket_of(KEYS[1], stamp, ARGV[2])
end
local reply = {'P' .. struct.pack('<I8', now)}
for index = 1, #ARGV - 3 do
  reply[index + 1] = vals[index] or ''
end
for bucket = 0, math.min(meta[BUCKETS], tonumber(ARGV[3])) - 1 do
  local packed = redis.call('HGET', KEYS[1], 'b' .. bucket)
  if packed then
    reply[#reply + 1] = packed
  end
end
return reply
