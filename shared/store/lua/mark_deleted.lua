#!lua flags=allow-oom
-- mark_deleted.lua: from now on nobody sees the job; what it is made of is purged next, here and at its providers.
-- KEYS[1] job row  [2] due clock  [3] clean-up note  [4] tenant's jobs, also the prefix of those by status
--     [5…] metadata indexes
-- ARGV[1] job id  [2] note (JSON)  [3] "1": there is nothing to clean up  [4] JSON: deliveries that tell of it, list of
--     {key, id, row, log}; not entered in the job's own log, which is purged  [5…] terminal statuses
-- The answer kept under the job's idempotency key goes at once.  Returns {1, ""} when marked, also earlier; {0, status}
-- while the job has not ended; {-1, ""} when there is no such job.
local row = redis.call("HMGET", KEYS[1], "status", "deleted_at_ms", "once")
if row[2] then return {1, ""} end
if not row[1] then return {-1, ""} end
local ended = false
for i = 5, #ARGV do ended = ended or ARGV[i] == row[1] end
if not ended then return {0, row[1]} end
local clock = redis.call("TIME")
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call("HSET", KEYS[1], "deleted_at_ms", now)
redis.call("HINCRBY", KEYS[1], "version", 1)
redis.call("ZREM", KEYS[4], ARGV[1])
redis.call("ZREM", KEYS[4] .. ":" .. row[1], ARGV[1])
for i = 5, #KEYS do redis.call("ZREM", KEYS[i], ARGV[1]) end
if row[3] and redis.call("EXISTS", row[3]) == 1 then redis.call("HSET", row[3], "body", "") end
redis.call("ZREM", KEYS[2], "job:" .. ARGV[1])
redis.call("ZADD", KEYS[2], now, "exp:" .. ARGV[1])
redis.call("HSET", KEYS[3], "row", ARGV[2])
if ARGV[3] ~= "1" then redis.call("ZADD", KEYS[2], now, "cln:" .. ARGV[1]) end
for _, delivery in ipairs(cjson.decode(ARGV[4])) do
  redis.call("HSET", delivery.key, "row", delivery.row)
  redis.call("EXPIRE", delivery.key, 2592000)
  if delivery.log then
    redis.call("ZADD", delivery.log, 0, delivery.id)
    redis.call("ZREMRANGEBYRANK", delivery.log, 0, -1001)
    redis.call("EXPIRE", delivery.log, 2592000)
  end
  redis.call("ZADD", KEYS[2], now, "dlv:" .. delivery.id)
end
return {1, ""}
