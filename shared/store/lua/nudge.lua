#!lua flags=allow-oom
-- nudge.lua: jobs that wait for something that has happened are due now.
-- KEYS[1] due clock  [2…] who waits for it
-- Returns how many jobs are due.
local clock = redis.call("TIME")
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local due = 0
for i = 2, #KEYS do
  local job = redis.call("GET", KEYS[i])
  local at = job and redis.call("ZSCORE", KEYS[1], "job:" .. job)
  if at then
    if tonumber(at) > now then redis.call("ZADD", KEYS[1], now, "job:" .. job) end
    due = due + 1
  end
end
return due
