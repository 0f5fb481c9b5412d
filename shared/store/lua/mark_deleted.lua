#!lua flags=allow-oom
-- mark_deleted.lua: from now on nobody sees the job; what it is made of is purged next.
-- KEYS[1] job row  [2] due clock  [3] tenant's jobs, also the prefix of those by status  [4…] metadata indexes
-- ARGV[1] job id  [2…] terminal statuses
-- The answer kept under the job's idempotency key goes at once.  Returns {1, ""} when marked, also earlier; {0, status}
-- while the job has not ended; {-1, ""} when there is no such job.
local row = redis.call("HMGET", KEYS[1], "status", "deleted_at_ms", "once")
if row[2] then return {1, ""} end
if not row[1] then return {-1, ""} end
local ended = false
for i = 2, #ARGV do ended = ended or ARGV[i] == row[1] end
if not ended then return {0, row[1]} end
local clock = redis.call("TIME")
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call("HSET", KEYS[1], "deleted_at_ms", now)
redis.call("HINCRBY", KEYS[1], "version", 1)
redis.call("ZREM", KEYS[3], ARGV[1])
redis.call("ZREM", KEYS[3] .. ":" .. row[1], ARGV[1])
for i = 4, #KEYS do redis.call("ZREM", KEYS[i], ARGV[1]) end
if row[3] and redis.call("EXISTS", row[3]) == 1 then redis.call("HSET", row[3], "body", "") end
redis.call("ZREM", KEYS[2], "job:" .. ARGV[1])
redis.call("ZADD", KEYS[2], now, "exp:" .. ARGV[1])
return {1, ""}
