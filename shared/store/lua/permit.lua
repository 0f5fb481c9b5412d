#!lua flags=allow-oom
-- permit.lua: lease permission for some calls from the rate that all workers share.
-- KEYS[1] rate    ARGV[1] calls wanted  [2] tokens per call, estimated  [3] limit of requests per minute, 0 if unknown
--                 [4] limit of tokens per minute, 0 if unknown  [5] bucket, seconds of the rate that may be saved up
-- A limit that is given replaces the one kept.  Without any limit every call is granted.
-- Returns {calls granted, ms to wait before asking again}.
local row = redis.call("HMGET", KEYS[1], "rpm", "tpm", "share", "requests", "tokens", "at_ms", "pause_until_ms")
local clock = redis.call("TIME")
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local pause = tonumber(row[7] or "0")
if pause > now then return {0, math.min(pause - now, 5000)} end
local rpm, tpm = tonumber(row[1] or "0"), tonumber(row[2] or "0")
if tonumber(ARGV[3]) > 0 then rpm = tonumber(ARGV[3]) end
if tonumber(ARGV[4]) > 0 then tpm = tonumber(ARGV[4]) end
local since = math.max(0, now - tonumber(row[6] or now))
-- After a cut the share of the limit grows back by a hundredth a second.
local share = math.min(1, tonumber(row[3] or "1") + since / 100000)
local wanted, each = tonumber(ARGV[1]), math.max(1, tonumber(ARGV[2]))
local function level(kept, per_minute)
  -- Below one call a second a bucket of seconds would never hold a whole call.
  local capacity = math.max(1, per_minute * share / 60 * tonumber(ARGV[5]))
  local saved = kept and tonumber(kept) or capacity
  return math.min(capacity, saved + per_minute * share * since / 60000)
end
local granted, wait = wanted, 0
local requests, tokens = "", ""
if rpm > 0 then
  requests = level(row[4], rpm)
  granted = math.min(granted, math.floor(requests))
  if granted < wanted then wait = math.max(wait, (1 - (requests - granted)) * 60000 / (rpm * share)) end
end
if tpm > 0 then
  tokens = level(row[5], tpm)
  -- A call larger than the bucket must still go out some time: a full bucket lets it, and owes the rest.
  local full = tpm * share / 60 * tonumber(ARGV[5])
  local affordable = math.max(0, math.floor(tokens / each))
  if affordable == 0 and tokens >= full - 1 then affordable = 1 end
  granted = math.min(granted, affordable)
  if affordable < wanted then
    local saved = affordable > 0 and tokens % each or tokens
    wait = math.max(wait, (math.min(each, full) - saved) * 60000 / (tpm * share))
  end
end
if rpm > 0 then requests = requests - granted end
if tpm > 0 then tokens = tokens - granted * each end
redis.call("HSET", KEYS[1], "rpm", rpm, "tpm", tpm, "share", share, "requests", requests, "tokens", tokens, "at_ms", now)
-- How many calls went out in this second and the last: the base for a cut where no limit is known.
local second = clock[1]
redis.call("HINCRBY", KEYS[1], "second:" .. (second % 4), granted)
redis.call("HSET", KEYS[1], "second:" .. ((tonumber(second) + 1) % 4), 0)
redis.call("EXPIRE", KEYS[1], 86400)
return {granted, math.ceil(wait)}
