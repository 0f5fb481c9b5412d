#!lua flags=allow-oom
-- hint.lua: a provider says that a fine-tuning job or batch has changed; whoever waits for it is due now.
-- KEYS[1] who waits for it  [2] due clock  [3] the event, to know it again
-- ARGV[1] seconds for which the event is known again
-- Returns the id of the job, "" when nobody waits or the event has come before.
if not redis.call("SET", KEYS[3], "", "NX", "EX", ARGV[1]) then return "" end
local job = redis.call("GET", KEYS[1])
if not job then return "" end
redis.call("SET", "d:{" .. job .. "}:hint", "", "EX", 60) -- what was read before the event is old now
if redis.call("ZSCORE", KEYS[2], "job:" .. job) then
  local clock = redis.call("TIME")
  redis.call("ZADD", KEYS[2], clock[1] * 1000 + math.floor(clock[2] / 1000), "job:" .. job)
end
return job
