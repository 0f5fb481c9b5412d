#!lua
-- add_file.lua: what was uploaded becomes a file, whole or not at all.
-- KEYS[1] file row  [2] chunks  [3] tenant's files
-- ARGV[1] file id  [2] number of chunks  [3] row (JSON)  [4] expires at, unix ms
-- Returns 1 when the file is there, 0 when a part of the upload is gone (it took too long).
if redis.call("EXISTS", KEYS[1]) == 1 then return 1 end -- the same request, sent again
if redis.call("HLEN", KEYS[2]) ~= tonumber(ARGV[2]) then return 0 end
redis.call("HSET", KEYS[1], "row", ARGV[3], "expires_at_ms", ARGV[4])
redis.call("PEXPIREAT", KEYS[1], ARGV[4])
redis.call("PEXPIREAT", KEYS[2], ARGV[4])
redis.call("ZADD", KEYS[3], 0, ARGV[1])
return 1
