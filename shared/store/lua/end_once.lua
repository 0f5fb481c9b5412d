#!lua flags=allow-oom
-- end_once.lua: the request was refused, so its idempotency key is free for a better one.  An answer stays.
-- KEYS[1] record of the key    ARGV[1] owner    Returns 1 when freed.
local record = redis.call("HMGET", KEYS[1], "owner", "job")
if record[1] == ARGV[1] and not record[2] then return redis.call("DEL", KEYS[1]) end
return 0
