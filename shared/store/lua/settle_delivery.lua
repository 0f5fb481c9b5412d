#!lua flags=allow-oom
-- settle_delivery.lua: write down how an attempt went and when the next one is due.
-- KEYS[1] delivery  [2] due clock    ARGV[1] delivery id  [2] row  [3] next attempt in ms, -1 for never, -2 for
--     never and nobody can read its log
-- Until the next attempt is due nobody can claim it, so bells that rang meanwhile do not use up the attempts.
if redis.call("EXISTS", KEYS[1]) == 0 then return 0 end
redis.call("HSET", KEYS[1], "row", ARGV[2])
redis.call("HDEL", KEYS[1], "attempting")
if tonumber(ARGV[3]) < 0 then
  redis.call("HSET", KEYS[1], "settled", 1)
  if tonumber(ARGV[3]) == -2 then redis.call("UNLINK", KEYS[1]) end
  redis.call("ZREM", KEYS[2], "dlv:" .. ARGV[1])
else
  local clock = redis.call("TIME")
  local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
  redis.call("HSET", KEYS[1], "lease_until_ms", now + tonumber(ARGV[3]))
  redis.call("ZADD", KEYS[2], now + tonumber(ARGV[3]), "dlv:" .. ARGV[1])
end
return 1
