#!lua flags=allow-oom
-- tell_wait.lua: what job a pass waits for, because it is buying the same; each told once.
-- KEYS[1] pass row    ARGV[1] ms: a pass that waits has asked again within so long
-- Returns the job's id, "" for none, or none that was not told before.
local row = redis.call("HMGET", KEYS[1], "waits_for", "waits_at_ms", "waits_told")
local clock = redis.call("TIME")
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
if not row[1] or row[1] == row[3] or tonumber(row[2]) + tonumber(ARGV[1]) < now then return "" end
redis.call("HSET", KEYS[1], "waits_told", row[1])
return row[1]
