#!lua flags=allow-oom
-- claim_cleanup.lua: take the clean-up of a deleted job for one look.
-- KEYS[1] note  [2] due clock    ARGV[1] job id  [2] token of this claim  [3] lease, ms
-- Returns {row, models}; models: "1" when its owner asked for the fine-tuned models to go.  False when there is nothing
-- to do, it is not due yet, or another worker is at it.
local note = redis.call("HMGET", KEYS[1], "row", "until_ms", "models")
local due = redis.call("ZSCORE", KEYS[2], "cln:" .. ARGV[1])
if not note[1] or not due then
  redis.call("ZREM", KEYS[2], "cln:" .. ARGV[1])
  return false
end
local clock = redis.call("TIME")
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
if tonumber(note[2] or "0") > now then return false end
redis.call("HSET", KEYS[1], "token", ARGV[2], "until_ms", now + tonumber(ARGV[3]))
redis.call("ZADD", KEYS[2], now + tonumber(ARGV[3]), "cln:" .. ARGV[1])
return {note[1], note[3] or ""}
