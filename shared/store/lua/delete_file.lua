#!lua flags=allow-oom
-- delete_file.lua: the owner is done with a file.  Its chunks go at once, or with the last job that uses them.
-- KEYS[1] file row  [2] chunks  [3] jobs that use it  [4] tenant's files    ARGV[1] file id
-- Returns 1 when the chunks are gone, 0 while jobs use them.
redis.call("ZREM", KEYS[4], ARGV[1])
if redis.call("SCARD", KEYS[3]) > 0 then
  if redis.call("EXISTS", KEYS[1]) == 1 then redis.call("HSET", KEYS[1], "deleted", 1) end
  return 0
end
redis.call("UNLINK", KEYS[1], KEYS[2])
return 1
