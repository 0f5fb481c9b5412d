#!lua flags=allow-oom
-- halt_pass.lua: nothing more may start in this pass; the engine is to look at the job now.
-- KEYS[1] pass row  [2] tenants with open passes, also the prefix of each one's passes  [3] due clock  [4] job row
-- ARGV[1] `job id/name`  [2] why, JSON  [3] job id
-- Returns 1 when halted by this call, 0 when it was halted, complete or closed before.  The first reason stays.
local tenant = redis.call("HGET", KEYS[4], "tenant")
if tenant then
  local passes = KEYS[2] .. ":" .. tenant
  redis.call("ZREM", passes, ARGV[1])
  if redis.call("EXISTS", passes) == 0 then redis.call("ZREM", KEYS[2], tenant) end
end
if redis.call("HEXISTS", KEYS[1], "complete") == 1 then return 0 end
if redis.call("HSETNX", KEYS[1], "halt", ARGV[2]) == 0 then return 0 end
redis.call("HSET", KEYS[1], "halt_run", redis.call("HGET", KEYS[4], "runs") or "0")
local clock = redis.call("TIME")
redis.call("ZADD", KEYS[3], "XX", clock[1] * 1000 + math.floor(clock[2] / 1000), "job:" .. ARGV[3])
return 1
