#!lua flags=allow-oom
-- put_webhook_endpoint.lua: make, change or remove a webhook endpoint, with what is to be told of it.
-- KEYS[1] tenant's endpoints  [2] due clock
-- ARGV[1] endpoint id  [2] row as it was read ("": there is none)  [3] row to be ("": none)  [4] most endpoints
--     [5] JSON: deliveries, list of {key, id, row, log}
-- Returns 1 when done, also earlier; 0 when the row has changed since it was read; -1 when there are too many.
local present = redis.call("HGET", KEYS[1], ARGV[1]) or ""
if present ~= ARGV[2] and present ~= ARGV[3] then return 0 end
if present == "" and ARGV[3] ~= "" and redis.call("HLEN", KEYS[1]) >= tonumber(ARGV[4]) then return -1 end
if ARGV[3] == "" then
  redis.call("HDEL", KEYS[1], ARGV[1])
else
  redis.call("HSET", KEYS[1], ARGV[1], ARGV[3])
end
local clock = redis.call("TIME")
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
for _, delivery in ipairs(cjson.decode(ARGV[5])) do
  if redis.call("EXISTS", delivery.key) == 0 then
    redis.call("HSET", delivery.key, "row", delivery.row)
    redis.call("EXPIRE", delivery.key, 2592000)
    redis.call("ZADD", delivery.log, 0, delivery.id)
    redis.call("ZREMRANGEBYRANK", delivery.log, 0, -1001)
    redis.call("EXPIRE", delivery.log, 2592000)
    redis.call("ZADD", KEYS[2], now, "dlv:" .. delivery.id)
  end
end
return 1
