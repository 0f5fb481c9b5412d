#!lua flags=allow-oom
-- forget_paid.lua: take entries of the ledger back that point to a job.
-- KEYS[…] ledger entries    ARGV[1] how an entry of this job begins
-- Returns how many there were.
local forgotten = 0
for _, key in ipairs(KEYS) do
  local entry = redis.call("GET", key)
  if entry and entry:sub(1, #ARGV[1]) == ARGV[1] then forgotten = forgotten + redis.call("DEL", key) end
end
return forgotten
