#!lua flags=allow-oom
-- claim.lua: take the lease of a job that nobody holds.
-- KEYS[1] job row  [2] due clock
-- ARGV[1] job id  [2] owner, fresh per claim  [3] lease, ms  [4…] terminal statuses
-- Returns {fence, takeovers} when taken (takeovers > 0: the last holder let its lease run out, so many times in a
-- row), {0, reason} otherwise: "missing", "terminal" or "held".
local row = redis.call("HMGET", KEYS[1], "status", "owner", "lease_until_ms", "fence", "takeovers")
if not row[1] then
  redis.call("ZREM", KEYS[2], "job:" .. ARGV[1])
  return {0, "missing"}
end
for i = 4, #ARGV do
  if row[1] == ARGV[i] then
    redis.call("ZREM", KEYS[2], "job:" .. ARGV[1])
    return {0, "terminal"}
  end
end
local clock = redis.call("TIME")
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local takeovers = tonumber(row[5] or "0")
if row[2] == ARGV[2] then return {tonumber(row[4]), takeovers} end -- the same claim, sent again
if row[2] and row[2] ~= "" then
  if tonumber(row[3]) > now then return {0, "held"} end
  takeovers = takeovers + 1
end
local until_ms = now + tonumber(ARGV[3])
local fence = redis.call("HINCRBY", KEYS[1], "fence", 1)
redis.call("HSET", KEYS[1], "owner", ARGV[2], "lease_until_ms", until_ms, "takeovers", takeovers)
redis.call("ZADD", KEYS[2], until_ms, "job:" .. ARGV[1])
return {fence, takeovers}
