#!lua flags=allow-oom
-- claim_chunk.lua: lease the next chunk of a pass: one whose lease ran out, one given back, or one never claimed.
-- KEYS[1] pass row  [2] chunks  [3] claims    ARGV[1] token of the worker  [2] lease, ms
-- Returns {chunk, holder} (0: it had none, 1: its last one gave it back, 2: its last one vanished) or {-1, 0} when there
-- is nothing to claim now.
local row = redis.call("HMGET", KEYS[1], "prompts", "chunk_size", "next", "halt", "complete")
if not row[1] or row[4] or row[5] then return {-1, 0} end
local clock = redis.call("TIME")
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local until_ms = now + tonumber(ARGV[2])
local free = redis.call("ZRANGEBYSCORE", KEYS[2], "-inf", now, "WITHSCORES", "LIMIT", 0, 1)
local chunk, holder
if free[1] then
  chunk, holder = free[1], (tonumber(free[2]) > 0) and 2 or 1
else
  chunk, holder = row[3], 0
  if tonumber(chunk) * tonumber(row[2]) >= tonumber(row[1]) then return {-1, 0} end
  redis.call("HINCRBY", KEYS[1], "next", 1)
end
redis.call("ZADD", KEYS[2], until_ms, chunk)
redis.call("HSET", KEYS[3], chunk, ARGV[1])
return {tonumber(chunk), holder}
