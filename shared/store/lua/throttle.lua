#!lua flags=allow-oom
-- throttle.lua: the provider refused a call for rate; every worker slows down.
-- KEYS[1] rate    ARGV[1] ms that the provider asked to wait, 0 if it named none
-- Cuts the shared rate by a fifth, at most once a second, and pauses everybody for the time named.
local clock = redis.call("TIME")
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local row = redis.call("HMGET", KEYS[1], "rpm", "share", "cut_at_ms", "pause_until_ms", "tpm")
local pause = math.max(tonumber(row[4] or "0"), now + tonumber(ARGV[1]))
redis.call("HSET", KEYS[1], "pause_until_ms", pause)
if now - tonumber(row[3] or "0") >= 1000 then
  redis.call("HSET", KEYS[1], "cut_at_ms", now)
  if tonumber(row[1] or "0") > 0 or tonumber(row[5] or "0") > 0 then
    redis.call("HSET", KEYS[1], "share", math.max(0.05, tonumber(row[2] or "1") * 0.8))
  else
    local last = redis.call("HGET", KEYS[1], "second:" .. ((clock[1] - 1) % 4))
    local this = redis.call("HGET", KEYS[1], "second:" .. (clock[1] % 4))
    local rate = math.max(tonumber(last or "0"), tonumber(this or "0"), 1)
    redis.call("HSET", KEYS[1], "rpm", math.max(60, math.floor(rate * 60)), "share", 0.8)
  end
end
redis.call("EXPIRE", KEYS[1], 86400)
return 1
