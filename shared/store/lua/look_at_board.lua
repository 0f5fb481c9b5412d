#!lua flags=allow-oom
-- look_at_board.lua: note that a fine-tuning job is followed, and see what is known of it.
-- KEYS[1] followed  [2] noticeboard  [3] whether the provider has no list  [4] who waits for the fine-tuning job
-- ARGV[1] id of the fine-tuning job  [2] since, unix s  [3] ms between two looks  [4] id of our job
--     [5] seconds for which that is kept  [6] ms after which it is written again though nothing has changed
-- Returns {how many are followed, the entry or "", now in unix ms, 1 when the provider has no list, 1 when this one was
-- not followed before}.  Writes seldom: a look is to cost no more than it must.
local clock = redis.call("TIME")
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local since, every = tonumber(ARGV[2]), tonumber(ARGV[3])
local known = redis.call("HGET", KEYS[1], ARGV[1])
local decoded, pace = pcall(cjson.decode, known or "")
if not decoded or type(pace) ~= "table" then pace = nil end
local same = pace and pace[1] == since and pace[3] and math.abs(pace[2] - every) <= every / 5 and now - pace[3] < tonumber(ARGV[6])
if not same then
  redis.call("HSET", KEYS[1], ARGV[1], cjson.encode({since, every, now}))
  redis.call("EXPIRE", KEYS[1], ARGV[5])
  redis.call("SET", KEYS[4], ARGV[4], "EX", ARGV[5])
end
local entry = redis.call("HGET", KEYS[2], ARGV[1])
local count, unlisted = redis.call("HLEN", KEYS[1]), redis.call("EXISTS", KEYS[3])
return {count, entry or "", now, unlisted, pace and 0 or 1}
