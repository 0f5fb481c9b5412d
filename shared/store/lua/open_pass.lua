#!lua flags=allow-oom
-- open_pass.lua: let pumps draw from a pass; made on first use, opened again after a halt of an earlier run of the job.
-- KEYS[1] pass row  [2] tenants with open passes, also the prefix of each one's passes  [3] job row
-- ARGV[1] `job id/name`  [2] prompts  [3] chunk size  [4] smoke: calls allowed before the trial is passed, "" for none
--   [5] 0: not for pumps, whoever works on it claims all its chunks
-- Returns "complete", "opened" (pumps could not draw from it before) or "open".
if redis.call("HSETNX", KEYS[1], "prompts", ARGV[2]) == 1 then
  redis.call("HSET", KEYS[1], "chunk_size", ARGV[3], "smoke", ARGV[4], "next", 0, "done", 0)
  if ARGV[2] == "0" then redis.call("HSET", KEYS[1], "complete", 1) end
end
if redis.call("HEXISTS", KEYS[1], "complete") == 1 then return "complete" end
local halted = redis.call("HMGET", KEYS[1], "halt", "halt_run")
if halted[1] and halted[2] == (redis.call("HGET", KEYS[3], "runs") or "0") then
  return "open" -- since whoever opens it looked: the reason is still to be read
end
redis.call("HDEL", KEYS[1], "halt")
if ARGV[5] == "0" then return "open" end
local tenant = redis.call("HGET", KEYS[3], "tenant")
if not tenant then return "open" end -- the job was purged meanwhile
local clock = redis.call("TIME")
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local listed = redis.call("ZADD", KEYS[2] .. ":" .. tenant, "NX", now, ARGV[1])
redis.call("ZADD", KEYS[2], "NX", now, tenant)
return listed == 1 and "opened" or "open"
