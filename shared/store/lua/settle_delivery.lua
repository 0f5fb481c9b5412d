#!lua flags=allow-oom
-- settle_delivery.lua: write down how an attempt went and when the next one is due.
-- KEYS[1] delivery  [2] due clock    ARGV[1] delivery id  [2] row  [3] next attempt in ms, -1 for never
if redis.call("EXISTS", KEYS[1]) == 0 then return 0 end
redis.call("HSET", KEYS[1], "row", ARGV[2], "lease_until_ms", 0)
if tonumber(ARGV[3]) < 0 then
  redis.call("ZREM", KEYS[2], "dlv:" .. ARGV[1])
else
  local clock = redis.call("TIME")
  local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
  redis.call("ZADD", KEYS[2], now + tonumber(ARGV[3]), "dlv:" .. ARGV[1])
end
return 1
