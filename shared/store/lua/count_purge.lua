#!lua flags=allow-oom
-- count_purge.lua: what a purge began with, counted once however often it breaks off.
-- KEYS[1] job row    ARGV[1] counts (JSON)
-- Returns the counts that hold; the given ones when the job is buried already.
if redis.call("HEXISTS", KEYS[1], "status") == 0 then return ARGV[1] end
redis.call("HSETNX", KEYS[1], "counted", ARGV[1])
return redis.call("HGET", KEYS[1], "counted")
