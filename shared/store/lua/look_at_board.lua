#!lua flags=allow-oom
-- look_at_board.lua: note that a fine-tuning job is followed, and see what is known of it.
-- KEYS[1] followed  [2] noticeboard  [3] whether the provider has no list
-- ARGV[1] id of the fine-tuning job  [2] since, unix s  [3] ms between two looks  [4] seconds for which that is kept
-- Returns {how many are followed, the entry or "", now in unix ms, 1 when the provider has no list}.
local clock = redis.call("TIME")
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call("HSET", KEYS[1], ARGV[1], cjson.encode({tonumber(ARGV[2]), tonumber(ARGV[3]), now}))
redis.call("EXPIRE", KEYS[1], ARGV[4])
local entry = redis.call("HGET", KEYS[2], ARGV[1])
return {redis.call("HLEN", KEYS[1]), entry or "", now, redis.call("EXISTS", KEYS[3])}
