#!lua
-- accept.lua: make a job durable, whole or not at all.  Refused by a full server before its first write.
-- KEYS[1] job row  [2] events  [3] prompts  [4] tenant's jobs  [5] tenant's jobs of this status  [6] due clock
-- ARGV[1] job id  [2] number of row fields, then field, value …; then first event (JSON, sequence 1);
--         then chunk number, chunk …
-- Returns 1 when written, 0 when the id is there already (the same request, sent again).
if redis.call("EXISTS", KEYS[1]) == 1 then return 0 end
local clock = redis.call("TIME")
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local fields = tonumber(ARGV[2])
for i = 0, fields - 1 do
  redis.call("HSET", KEYS[1], ARGV[3 + 2 * i], ARGV[4 + 2 * i])
end
local at = 3 + 2 * fields
redis.call("XADD", KEYS[2], "1-0", "e", ARGV[at])
redis.call("HSET", KEYS[1], "sequence", 1)
for i = at + 1, #ARGV, 2 do
  redis.call("HSET", KEYS[3], ARGV[i], ARGV[i + 1])
end
redis.call("ZADD", KEYS[4], 0, ARGV[1])
redis.call("ZADD", KEYS[5], 0, ARGV[1])
redis.call("ZADD", KEYS[6], now, "job:" .. ARGV[1])
return 1
