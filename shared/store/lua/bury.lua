#!lua flags=allow-oom
-- bury.lua: everything of a deleted job is gone; a stone says that it was there.
-- KEYS[1] job row  [2] due clock  [3] clean-up note
-- ARGV[1] job id  [2] receipt  [3] seconds the stone stands, and a note that is over
-- Returns 1 when buried, 0 when it was, or is not deleted.
redis.call("ZREM", KEYS[2], "exp:" .. ARGV[1])
local row = redis.call("HMGET", KEYS[1], "tenant", "deleted_at_ms", "status")
if not row[2] or not row[3] then return 0 end
local clock = redis.call("TIME")
redis.call("DEL", KEYS[1])
redis.call("HSET", KEYS[1], "tenant", row[1], "deleted_at_ms", row[2], "receipt", ARGV[2],
  "purged_at_ms", clock[1] * 1000 + math.floor(clock[2] / 1000))
redis.call("EXPIRE", KEYS[1], ARGV[3])
if not redis.call("ZSCORE", KEYS[2], "cln:" .. ARGV[1]) then redis.call("EXPIRE", KEYS[3], ARGV[3]) end
return 1
