#!lua flags=allow-oom
-- take.lua: take requests from a tenant's bucket, which fills by its rate and holds a minute's worth.
-- KEYS[1] bucket    ARGV[1] requests per minute  [2] wanted  [3] taken earlier and not used
-- Returns {taken, left, ms until the next one is there}.
local clock = redis.call("TIME")
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local rate = tonumber(ARGV[1])
local row = redis.call("HMGET", KEYS[1], "tokens", "at_ms")
local tokens = rate
if row[1] then
  local passed = math.max(0, now - tonumber(row[2]))
  tokens = math.min(rate, tonumber(row[1]) + tonumber(ARGV[3]) + passed * rate / 60000)
end
local taken = math.min(tonumber(ARGV[2]), math.floor(tokens))
tokens = tokens - taken
redis.call("HSET", KEYS[1], "tokens", string.format("%.4f", tokens), "at_ms", now)
redis.call("PEXPIRE", KEYS[1], 120000)
local wait = 0
if taken == 0 then wait = math.ceil((1 - tokens) * 60000 / rate) end
return {taken, math.floor(tokens), wait}
