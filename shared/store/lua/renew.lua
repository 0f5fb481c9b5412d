#!lua flags=allow-oom
-- renew.lua: keep the lease of a job.
-- KEYS[1] job row  [2] due clock    ARGV[1] job id  [2] fence  [3] lease, ms
-- Returns 1 when kept, 0 when another has it.
local row = redis.call("HMGET", KEYS[1], "fence", "owner")
if row[1] ~= ARGV[2] or row[2] == "" then return 0 end
local clock = redis.call("TIME")
local until_ms = clock[1] * 1000 + math.floor(clock[2] / 1000) + tonumber(ARGV[3])
redis.call("HSET", KEYS[1], "lease_until_ms", until_ms)
redis.call("ZADD", KEYS[2], until_ms, "job:" .. ARGV[1])
return 1
