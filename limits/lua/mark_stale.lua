-- A push: what SQL knows of this account changed. Nothing is admitted before a load under the new ticket.
--
-- Flags: allow-oom
-- KEYS  1 the account (hash)  2 the partition's outbox (stream)  3 the partition's lease index (sorted set)
-- ARGV  1 policy (packed, see prelude.lua)  2 ticket: a nonce (string)
-- Example  a grant is revoked: mark_stale, then load a snapshot read after this reply
-- Effect
--   * The account is stale under this ticket; a load under way with an older one will be refused.
-- Reply  integer: 1
assert(#KEYS == 3 and #ARGV == 2, 'mark_stale: 3 keys, 2 arguments')

read_clock()
local stamp = incarnation(KEYS[3], KEYS[2])
local packed = redis.call('HGET', KEYS[1], 'm')
local meta = packed and read_meta(packed) or new_meta(KEYS[3])
meta[STAMP] = NO_STAMP
redis.call('HSET', KEYS[1], 'm', pack_meta(meta), 't', stamp .. ARGV[2])
return 1
