#!lua flags=allow-oom
-- give_back.lua: let go of a job that this worker cannot carry, without counting as one that vanished.
-- KEYS[1] job row  [2] due clock    ARGV[1] job id  [2] fence  [3] due in, ms
-- Returns 1 when let go, 0 when another has it.
local row = redis.call("HMGET", KEYS[1], "fence", "owner")
if row[1] ~= ARGV[2] or row[2] == "" then return 0 end
local clock = redis.call("TIME")
redis.call("HSET", KEYS[1], "owner", "", "lease_until_ms", 0)
redis.call("ZADD", KEYS[2], clock[1] * 1000 + math.floor(clock[2] / 1000) + tonumber(ARGV[3]), "job:" .. ARGV[1])
return 1
