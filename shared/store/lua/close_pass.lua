#!lua flags=allow-oom
-- close_pass.lua: take passes off the list that pumps draw from.
-- KEYS[1] tenant's open passes  [2] tenants with open passes    ARGV[1] tenant  [2…] `job id/name`
for i = 2, #ARGV do redis.call("ZREM", KEYS[1], ARGV[i]) end
if redis.call("EXISTS", KEYS[1]) == 0 then redis.call("ZREM", KEYS[2], ARGV[1]) end
return 1
