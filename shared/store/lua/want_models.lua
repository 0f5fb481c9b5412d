#!lua flags=allow-oom
-- want_models.lua: the owner of a deleted job wants its fine-tuned models deleted, too.
-- KEYS[1] note  [2] due clock    ARGV[1] job id
-- Returns 1 when that is due now, or as soon as whoever is at it lets go; 0 when it was asked before; -1 without a note.
if redis.call("EXISTS", KEYS[1]) == 0 then return -1 end
if redis.call("HGET", KEYS[1], "models") == "1" then return 0 end
redis.call("HSET", KEYS[1], "models", "1")
redis.call("PERSIST", KEYS[1])
local clock = redis.call("TIME")
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
if (redis.call("HGET", KEYS[1], "token") or "") == "" then
  redis.call("HSET", KEYS[1], "until_ms", 0)
  redis.call("ZADD", KEYS[2], now, "cln:" .. ARGV[1])
end
return 1
