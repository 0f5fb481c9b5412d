#!lua flags=allow-oom
-- save_cleanup.lua: write down how far the clean-up of a deleted job has come, and keep or end the claim.
-- KEYS[1] note  [2] due clock
-- ARGV[1] job id  [2] token of the claim  [3] row ("": unchanged)  [4] what next: "hold", "wait" or "over"
--     [5] lease (hold) or time until the next look (wait), ms; seconds to keep the note (over)
--     [6] "1" when the row minds that the models shall go
-- Asked for the models meanwhile, it is due again at once.  Returns 1 when written, 0 when the claim is another's.
if redis.call("HGET", KEYS[1], "token") ~= ARGV[2] then return 0 end
local clock = redis.call("TIME")
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
if ARGV[3] ~= "" then redis.call("HSET", KEYS[1], "row", ARGV[3]) end
local wait = tonumber(ARGV[5])
local next = ARGV[4]
if next == "hold" then
  redis.call("HSET", KEYS[1], "until_ms", now + wait)
  redis.call("ZADD", KEYS[2], now + wait, "cln:" .. ARGV[1])
  return 1
end
redis.call("HSET", KEYS[1], "token", "")
if redis.call("HGET", KEYS[1], "models") == "1" and ARGV[6] ~= "1" then
  next = "wait"
  wait = 0
end
if next == "wait" then
  redis.call("HSET", KEYS[1], "until_ms", now + wait)
  redis.call("ZADD", KEYS[2], now + wait, "cln:" .. ARGV[1])
else
  redis.call("ZREM", KEYS[2], "cln:" .. ARGV[1])
  redis.call("EXPIRE", KEYS[1], wait)
end
return 1
