#!lua flags=allow-oom
-- redeliver.lua: make a webhook delivery due now, whatever became of it.
-- KEYS[1] delivery  [2] due clock    ARGV[1] delivery id  [2] row as it was read  [3] row to be
-- Returns 1 when it is due, or being attempted this very moment; 0 when the row has changed since it was read.
local held = redis.call("HMGET", KEYS[1], "row", "lease_until_ms", "attempting")
local clock = redis.call("TIME")
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
if held[1] and held[3] and tonumber(held[2] or "0") > now then return 1 end
if held[1] ~= ARGV[2] then return 0 end
redis.call("HSET", KEYS[1], "row", ARGV[3], "lease_until_ms", 0)
redis.call("HDEL", KEYS[1], "settled", "attempting")
redis.call("EXPIRE", KEYS[1], 2592000)
redis.call("ZADD", KEYS[2], now, "dlv:" .. ARGV[1])
return 1
