#!lua flags=allow-oom
-- begin_purge.lua: purge a job alone.  A script, so that a full server lets it pass: it is what makes room.
-- KEYS[1] mark    ARGV[1] lease, ms
-- Returns 1 when begun, 0 while another worker purges.
if redis.call("SET", KEYS[1], "", "NX", "PX", ARGV[1]) then return 1 end
return 0
