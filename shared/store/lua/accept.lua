#!lua
-- accept.lua: make a job durable, whole or not at all.  Refused by a full server before its first write.
-- KEYS[1] job row  [2] events  [3] prompts  [4] tenant's jobs, also the prefix of those by status  [5] tenant's jobs of
--     this status  [6] due clock  [7] record of the idempotency key (unused without one)  [8] row of the file the
--     prompts are from  [9] its chunks  [10] jobs that use it (all unused without one)  [11] all tenants
--     [12…] metadata indexes
-- ARGV[1] job id  [2] fingerprint of the request ("": it came without an idempotency key)  [3] the answer, to be given
--     again  [4] seconds to keep it  [5] most jobs queued or running (0: any number)
--     [6] "visible": the owner must still see the file, "kept": it need only be there, "": the prompts come along
--     [7] number of row fields, then field, value …; then first event (JSON, sequence 1); then chunk number, chunk …
-- Returns 1 when written, 0 when the id is there already (the same request, sent again), -1 when another request with
-- the same idempotency key was first, -2 when too many jobs are active, -3 when the file is gone.
if redis.call("EXISTS", KEYS[1]) == 1 then return 0 end
if ARGV[2] ~= "" and redis.call("HEXISTS", KEYS[7], "job") == 1 then return -1 end
local most = tonumber(ARGV[5])
if most > 0 then
  local active = redis.call("ZCARD", KEYS[4] .. ":queued") + redis.call("ZCARD", KEYS[4] .. ":running")
  if active >= most then return -2 end
end
local clock = redis.call("TIME")
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
if ARGV[6] ~= "" then
  local file = redis.call("HMGET", KEYS[8], "expires_at_ms", "deleted")
  if not file[1] then return -3 end
  if ARGV[6] == "visible" and (file[2] or tonumber(file[1]) <= now) then return -3 end
  redis.call("SADD", KEYS[10], ARGV[1])
  redis.call("PERSIST", KEYS[8])
  redis.call("PERSIST", KEYS[9])
end
local at = 8 + 2 * tonumber(ARGV[7])
redis.call("HSET", KEYS[1], "sequence", 1, unpack(ARGV, 8, at - 1))
redis.call("XADD", KEYS[2], "1-0", "e", ARGV[at])
for i = at + 1, #ARGV, 2 do
  redis.call("HSET", KEYS[3], ARGV[i], ARGV[i + 1])
end
redis.call("ZADD", KEYS[4], 0, ARGV[1])
redis.call("ZADD", KEYS[5], 0, ARGV[1])
redis.call("SADD", KEYS[11], redis.call("HGET", KEYS[1], "tenant"))
for i = 12, #KEYS do redis.call("ZADD", KEYS[i], 0, ARGV[1]) end
if ARGV[2] ~= "" then
  redis.call("HSET", KEYS[7], "fingerprint", ARGV[2], "job", ARGV[1], "body", ARGV[3])
  redis.call("HDEL", KEYS[7], "owner")
  redis.call("EXPIRE", KEYS[7], ARGV[4])
  redis.call("HSET", KEYS[1], "once", KEYS[7])
end
redis.call("ZADD", KEYS[6], now, "job:" .. ARGV[1])
return 1
