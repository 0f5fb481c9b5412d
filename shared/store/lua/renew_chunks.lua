#!lua flags=allow-oom
-- renew_chunks.lua: keep the leases of chunks, or give them back.
-- KEYS[1] pass row  [2] chunks  [3] claims  [4] job row
-- ARGV[1] token  [2] lease, ms; "" gives the chunks back  [3…] chunks
-- Returns {open, chunk …}: open is 0 when nothing more may start in this pass; the chunks are those still held.
local clock = redis.call("TIME")
local score = 0
if ARGV[2] ~= "" then score = clock[1] * 1000 + math.floor(clock[2] / 1000) + tonumber(ARGV[2]) end
local open = 1
local ended = redis.call("HMGET", KEYS[1], "halt", "complete")
if redis.call("HGET", KEYS[4], "status") ~= "running" or ended[1] or ended[2] then open = 0 end
local held = {open}
for i = 3, #ARGV do
  if redis.call("HGET", KEYS[3], ARGV[i]) == ARGV[1] and redis.call("ZSCORE", KEYS[2], ARGV[i]) then
    redis.call("ZADD", KEYS[2], score, ARGV[i])
    if ARGV[2] == "" then redis.call("HDEL", KEYS[3], ARGV[i]) end
    held[#held + 1] = tonumber(ARGV[i])
  end
end
return held
