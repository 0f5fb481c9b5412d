#!lua flags=allow-oom
-- sweep.lua: hand out the rows whose time has come, each once per grace period however many sweepers ask.
-- KEYS[1] due clock    ARGV[1] grace, ms  [2] most rows
-- Returns the members that are due.
local clock = redis.call("TIME")
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local due = redis.call("ZRANGEBYSCORE", KEYS[1], "-inf", now, "LIMIT", 0, ARGV[2])
for _, member in ipairs(due) do
  redis.call("ZADD", KEYS[1], now + tonumber(ARGV[1]), member)
end
return due
