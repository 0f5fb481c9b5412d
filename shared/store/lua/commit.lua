#!lua flags=allow-oom
-- commit.lua: change a job's row, with its events, webhook deliveries, index entries and due time, all or nothing.
-- KEYS[1] job row  [2] events  [3] due clock  [4] job's deliveries  [5] prefix of the tenant's per-status indexes
--     [6] results  [7] tenant's reservations  [8] prefix of the tenant's days  [9] index of them
-- ARGV[1] job id  [2] JSON:
--   commit      unique per change, 32 characters; a change sent twice is made once, also after other changes
--   fence       "" for an owner's request, else the fence the worker holds
--   sources     statuses from which the change is allowed; null: any
--   stands      row fields that must stand so, as text; else it is refused as from a wrong status
--   most_active  most jobs of the tenant queued or running beside this one; null: any number
--   set         row fields to write ("status" among them moves the index entry)
--   add         row fields to add to (whole numbers); spent_nano, reserved_nano and unconfirmed_nano count for the tenant
--               too, the latter two until the job has ended
--   day_limit   most nano-dollars the tenant may spend a day; null: any number
--   events      list of event JSON texts, without sequence
--   deliveries  list of {key, id, row, log}; log: of the endpoint, absent for a job's own webhook
--   due_in_ms   when somebody must look next; -1: never again; null: unchanged
--   release     true: the lease ends here
--   progress    true: the row moved on, so takeovers start from 0 again
--   results     text for the results key, or null
--   ends        true: `set.status` is terminal.  What is still reserved, for calls whose answers may yet come, then counts
--               as unconfirmed of this day, so that nothing is reserved for ever; let_go_day remembers the day.  What
--               of these calls is lost, a worker finds out: the job is due for that, too
--   models      list of {key, lately, model}: fine-tuned models of the job's tenant, each to be entered under its key,
--               and when it is new among those made in the last hour
-- ARGV[3] tenant
-- Returns {1, version} when done, {0, status} when the status does not allow it, {-1, status} when the fence is stale,
-- {-2, ""} when there is no such job, {-3, status} when what is to be reserved would exceed the limit of the day,
-- {-4, status} when too many jobs are active.
local change = cjson.decode(ARGV[2])
local row = redis.call("HMGET", KEYS[1], "status", "fence", "owner", "commits", "version", "sequence", "let_go_day")
local status = row[1]
if not status then return {-2, ""} end
local commits = row[4] or ""
if commits:find(change.commit, 1, true) then return {1, tonumber(row[5])} end
if change.fence ~= "" and (row[2] ~= change.fence or row[3] == "") then return {-1, status} end
if change.sources ~= cjson.null then
  local allowed = false
  for _, source in ipairs(change.sources) do
    if source == status then allowed = true end
  end
  if not allowed then return {0, status} end
end
for field, value in pairs(change.stands) do
  if redis.call("HGET", KEYS[1], field) ~= value then return {0, status} end
end
if change.most_active ~= cjson.null then
  local active = redis.call("ZCARD", KEYS[5] .. ":queued") + redis.call("ZCARD", KEYS[5] .. ":running")
  if active >= change.most_active then return {-4, status} end
end
local clock = redis.call("TIME")
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local today = string.format("%d", math.floor(clock[1] / 86400))
local day = KEYS[8] .. today
local spends, reserves = tonumber(change.add.spent_nano or 0), tonumber(change.add.reserved_nano or 0)
local unconfirmed = tonumber(change.add.unconfirmed_nano or 0)
if row[7] then reserves, unconfirmed = 0, 0 end -- it was let go of when the job ended
if reserves > 0 and change.day_limit ~= cjson.null then
  local counted = redis.call("HMGET", day, "spent_nano", "unconfirmed_nano")
  local used = (counted[1] or 0) + (counted[2] or 0) + (redis.call("HGET", KEYS[7], "reserved_nano") or 0)
  if used + spends + reserves > change.day_limit then return {-3, status} end
end
local target = change.set.status
if target and target ~= status then
  redis.call("ZREM", KEYS[5] .. ":" .. status, ARGV[1])
  redis.call("ZADD", KEYS[5] .. ":" .. target, 0, ARGV[1])
  if target == "running" then redis.call("HINCRBY", KEYS[1], "runs", 1) end
end
for field, value in pairs(change.set) do
  redis.call("HSET", KEYS[1], field, value)
end
for field, amount in pairs(change.add) do
  redis.call("HINCRBY", KEYS[1], field, amount)
end
local let_go = 0
if change.ends then
  let_go = tonumber(redis.call("HGET", KEYS[1], "reserved_nano") or 0)
  if let_go ~= 0 then
    reserves, unconfirmed = reserves - let_go, unconfirmed + let_go
    redis.call("HSET", KEYS[1], "let_go_day", today)
  end
end
if change.ends and change.fence ~= "" and (target ~= "succeeded" or let_go ~= 0) then
  redis.call("ZADD", KEYS[3], now, "out:" .. ARGV[1])
end
if reserves ~= 0 then redis.call("HINCRBY", KEYS[7], "reserved_nano", reserves) end
if spends ~= 0 or unconfirmed ~= 0 then
  redis.call("HINCRBY", day, "spent_nano", spends)
  redis.call("HINCRBY", day, "unconfirmed_nano", unconfirmed)
  if redis.call("TTL", day) < 0 then
    redis.call("EXPIRE", day, 34560000)
    redis.call("ZADD", KEYS[9], today, today)
    redis.call("ZREMRANGEBYSCORE", KEYS[9], "-inf", today - 400)
  end
end
local sequence = tonumber(row[6])
for _, event in ipairs(change.events) do
  sequence = sequence + 1
  redis.call("XADD", KEYS[2], sequence .. "-0", "e", event)
end
for _, delivery in ipairs(change.deliveries) do
  redis.call("HSET", delivery.key, "row", delivery.row)
  redis.call("EXPIRE", delivery.key, 2592000)
  redis.call("ZADD", KEYS[4], 0, delivery.id)
  if delivery.log then
    redis.call("ZADD", delivery.log, 0, delivery.id)
    redis.call("ZREMRANGEBYRANK", delivery.log, 0, -1001)
    redis.call("EXPIRE", delivery.log, 2592000)
  end
  redis.call("ZADD", KEYS[3], now, "dlv:" .. delivery.id)
end
if change.set.expires_at_ms and change.set.expires_at_ms ~= "" then
  redis.call("ZADD", KEYS[3], change.set.expires_at_ms, "exp:" .. ARGV[1]) -- to be purged then
end
for _, tuned in ipairs(change.models) do
  if redis.call("HSET", tuned.key, tuned.model, ARGV[3]) == 1 then
    redis.call("ZREMRANGEBYSCORE", tuned.lately, "-inf", now - 3600000)
    redis.call("ZADD", tuned.lately, now, tuned.model)
    redis.call("PEXPIRE", tuned.lately, 3600000)
  end
end
if change.results ~= cjson.null then redis.call("SET", KEYS[6], change.results) end
if change.progress then redis.call("HSET", KEYS[1], "takeovers", 0) end
if change.release then redis.call("HSET", KEYS[1], "owner", "", "lease_until_ms", 0) end
if change.due_in_ms ~= cjson.null then
  if change.due_in_ms < 0 then
    redis.call("ZREM", KEYS[3], "job:" .. ARGV[1])
  else
    redis.call("ZADD", KEYS[3], now + change.due_in_ms, "job:" .. ARGV[1])
  end
end
redis.call("HSET", KEYS[1], "commits", (change.commit .. commits):sub(1, 8 * 32), "sequence", sequence)
return {1, redis.call("HINCRBY", KEYS[1], "version", 1)}
