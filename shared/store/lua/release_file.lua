#!lua flags=allow-oom
-- release_file.lua: a job that used a file is purged.
-- KEYS[1] file row  [2] chunks  [3] jobs that use it  [4] tenant's files    ARGV[1] file id  [2] job id
-- The last job to go takes a deleted or expired file with it; any other file lives on until it expires.
-- Returns how many jobs still use it.
redis.call("SREM", KEYS[3], ARGV[2])
local left = redis.call("SCARD", KEYS[3])
if left > 0 then return left end
local row = redis.call("HMGET", KEYS[1], "expires_at_ms", "deleted")
local clock = redis.call("TIME")
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
if row[1] and not row[2] and tonumber(row[1]) > now then
  redis.call("PEXPIREAT", KEYS[1], row[1])
  redis.call("PEXPIREAT", KEYS[2], row[1])
else
  redis.call("UNLINK", KEYS[1], KEYS[2])
  redis.call("ZREM", KEYS[4], ARGV[1])
end
return 0
