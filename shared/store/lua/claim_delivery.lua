#!lua flags=allow-oom
-- claim_delivery.lua: take a webhook delivery for one attempt.
-- KEYS[1] delivery  [2] due clock    ARGV[1] delivery id  [2] lease, ms
-- Returns its row, or false when it is gone, settled or not yet due, or another worker is at it.
local row = redis.call("HMGET", KEYS[1], "row", "lease_until_ms", "settled")
if not row[1] or row[3] then
  redis.call("ZREM", KEYS[2], "dlv:" .. ARGV[1])
  return false
end
local clock = redis.call("TIME")
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
if tonumber(row[2] or "0") > now then return false end
redis.call("HSET", KEYS[1], "lease_until_ms", now + tonumber(ARGV[2]), "attempting", 1)
redis.call("ZADD", KEYS[2], now + tonumber(ARGV[2]), "dlv:" .. ARGV[1])
return row[1]
