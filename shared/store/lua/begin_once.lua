#!lua
-- begin_once.lua: the first request with an idempotency key takes its place; the others are told of it.
-- KEYS[1] record of the key    ARGV[1] owner, fresh per request  [2] fingerprint of the request  [3] ms to hold it
-- Returns {1} when taken, {0, job id, answer} when it was answered ("" once that job was deleted), {-1} while the
-- first is being served, {-2} when it was used for another request.
local record = redis.call("HMGET", KEYS[1], "fingerprint", "owner", "job", "body")
if record[1] and record[1] ~= ARGV[2] then return {-2} end
if record[3] then return {0, record[3], record[4] or ""} end
if record[2] and record[2] ~= ARGV[1] then return {-1} end
redis.call("HSET", KEYS[1], "fingerprint", ARGV[2], "owner", ARGV[1])
redis.call("PEXPIRE", KEYS[1], ARGV[3])
return {1}
