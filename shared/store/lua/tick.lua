#!lua flags=allow-oom
-- tick.lua: settle the calls that have ended and begin the next ones, in one step.
-- KEYS[1] job row  [2] pass row  [3] calls  [4] claims  [5] chunks  [6] tenant's open passes  [7] due clock  [8] tenant's
--   reservations  [9] prefix of the tenant's days  [10] index of them  [11] tenants with open passes
-- ARGV[1] job id  [2] pass name  [3] prefix of the completion keys  [4] token of the worker
--   [5] most nano-dollars the tenant may spend a day ("": any number)
--   [6] number of settlements, then for each: chunk, index, call ("" when none was made), blob ("" when the call ended
--   without settling the prompt), cost in nano-dollars ("" unpriced; of a lost call the most it can be), outcome
--   (accepted, rejected, failed), lost (1: a call without an answer that may have been billed), reused (1: paid earlier),
--   ledger key ("" for none), seconds to keep it there, tokens as "prompt completion cached written reasoning"
-- then for each call to begin: chunk, index, call, upper bound in nano-dollars ("": not counted, since nothing was
-- limited when its worker read the job; it is "stopped" where its owner has set a limit since), ledger key ("" for none).
-- A settlement is never refused: what is paid is paid, and the first completion of a prompt is kept.  Money moves only
-- with the call's mark, so a script sent twice counts once.
-- The ledger holds `paid|<job>|<pass>|<chunk>|<index>` for a completion that can be reused, and
-- `call|<call>|<job row>|<pass row>|<chunk>|<index>` while one is being bought, so that nobody buys the same twice.  Who
-- waits for a call does so while its worker keeps the chunk, or has let the lease run out only now: the answers of one
-- that vanished come within the wait before a takeover, or never.
-- What a call costs counts on the day its answer is settled; what a lost one may cost, on the day it was lost, which its
-- mark remembers: what it had reserved, or where nothing is limited, and so nothing reserved, what its settlement says,
-- or the upper bound of the call that asks the same again.  Reservations belong to no day: whenever they are settled,
-- they count against that day.
-- Returns {state, settled, accepted, failed, reserved, answer …}: state is "open", "complete" or "stopped"; reserved,
-- after a "budget" or "day", only of calls that a worker still waits for; one answer
-- per call to begin: "go", or why not: "stopped", "unleased", "settled", "smoke", "budget", "day" (the tenant's limit of
-- the day), "paid" (the ledger has it), "twin" (somebody is buying it right now).
local LATE_MS = 2000 -- the default of `takeover_grace_seconds`
local row = redis.call("HMGET", KEYS[2], "prompts", "chunk_size", "smoke", "halt")
local prompts, chunk_size, smoke, halt = tonumber(row[1]), tonumber(row[2]), row[3], row[4]
local name = ARGV[1] .. "/" .. ARGV[2]

local function add(field, amount)
  if tonumber(amount) ~= 0 then redis.call("HINCRBY", KEYS[1], field, amount) end
end

-- An answer that comes after its job was deleted is paid for, and not kept.  let_go_day: the job has ended, and what it
-- had reserved then counts as unconfirmed of that day (commit.lua).
local row_of_job = redis.call("HMGET", KEYS[1], "deleted_at_ms", "let_go_day")
local deleted, let_go = row_of_job[1], row_of_job[2]
local clock = redis.call("TIME")
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local today = string.format("%d", math.floor(clock[1] / 86400))
local held, day = 0, {} -- what is to be added to the tenant's reservations, and to its day

local function count(field, amount)
  day[field] = (day[field] or 0) + tonumber(amount)
end

local function confirm(amount, on)
  -- The call lost on that day is accounted for after all.
  if on and amount ~= 0 and redis.call("EXISTS", KEYS[9] .. on) == 1 then
    redis.call("HINCRBY", KEYS[9] .. on, "unconfirmed_nano", -amount)
  end
end

local function enter()
  -- Writes what was counted.
  if held ~= 0 then redis.call("HINCRBY", KEYS[8], "reserved_nano", held) end
  local counted = false
  for field, amount in pairs(day) do
    if amount ~= 0 then
      redis.call("HINCRBY", KEYS[9] .. today, field, amount)
      counted = true
    end
  end
  if counted and redis.call("TTL", KEYS[9] .. today) < 0 then
    redis.call("EXPIRE", KEYS[9] .. today, 34560000)
    redis.call("ZADD", KEYS[10], today, today)
    redis.call("ZREMRANGEBYSCORE", KEYS[10], "-inf", today - 400)
  end
  held, day = 0, {}
end

local function close_mark(index, call, lost, ceiling)
  -- Ends one call's hold on the budget.  ceiling: the most a lost one can cost, where it had reserved nothing.
  -- Returns whether the call was known and not closed before, and how much more it counts than it had reserved.
  local more = 0
  local mark = redis.call("HGET", KEYS[3], index)
  local reserved = mark and mark:sub(1, #call + 1) == call .. "|" and mark:sub(#call + 2)
  if reserved then
    redis.call("HDEL", KEYS[3], index)
    local amount = tonumber(reserved)
    add("reserved_nano", -amount)
    if not let_go then held = held - amount end
    if lost then
      local most = amount > 0 and amount or ceiling
      more = most - amount
      redis.call("HSET", KEYS[3], index .. "|" .. call, string.format("%d", most) .. "|" .. (let_go or today))
      add("unconfirmed_nano", most)
      if let_go then confirm(-more, let_go) else count("unconfirmed_nano", most) end
      add("possibly_billed", 1)
      redis.call("HINCRBY", KEYS[2], "lost", 1)
    elseif let_go then
      confirm(amount, let_go)
    end
    return true, more
  end
  if lost then return false, 0 end
  local kept = redis.call("HGET", KEYS[3], index .. "|" .. call)
  if not kept then return false, 0 end
  redis.call("HDEL", KEYS[3], index .. "|" .. call)
  local amount, on = kept:match("^(%d+)|?(%d*)$")
  add("unconfirmed_nano", -tonumber(amount))
  confirm(tonumber(amount), on ~= "" and on)
  add("possibly_billed", -1)
  redis.call("HINCRBY", KEYS[2], "lost", -1)
  return true, 0
end

local function is_kept(call, chunk, claims, chunks, late_ms)
  -- Whether the call's worker holds the chunk, with a lease that ended no longer ago than that.
  local holder, lease = redis.call("HGET", claims, chunk), redis.call("ZSCORE", chunks, chunk)
  return holder and lease and tonumber(lease) + late_ms > now and call:sub(1, #holder) == holder
end

local function bought_by(entry)
  -- Key of the job whose call the ledger's entry is, while somebody waits for it; false when nobody does any more.  An
  -- answer to a deleted job would not be kept.
  local call, job, pass, chunk, index = entry:match("^call|([^|]*)|([^|]*)|([^|]*)|(%d+)|(%d+)$")
  if not call then return true end -- of a version that noted no place: waited for until the entry runs out
  local of_job = redis.call("HMGET", job, "status", "deleted_at_ms")
  if not of_job[1] or of_job[2] then return false end
  local function beside(key) return pass .. key:sub(#KEYS[2] + 1) end
  local mark = redis.call("HGET", beside(KEYS[3]), index)
  if not mark or mark:sub(1, #call + 1) ~= call .. "|" then return false end
  return is_kept(call, chunk, beside(KEYS[4]), beside(KEYS[5]), LATE_MS) and job
end

local function is_of(entry, call)
  return entry and (entry == "call|" .. call or entry:sub(1, #call + 6) == "call|" .. call .. "|")
end

local function reserved_for_nobody()
  -- Reservations of workers that vanished or let go: waiting will not free them.
  local sum = 0
  local marks = redis.call("HGETALL", KEYS[3])
  for i = 1, #marks, 2 do
    local index = tonumber(marks[i])
    if index then
      local chunk = string.format("%d", math.floor(index / chunk_size))
      local call, reserved = marks[i + 1]:match("^(.*)|(%d+)$")
      if not is_kept(call, chunk, KEYS[4], KEYS[5], 0) then sum = sum + tonumber(reserved) end
    end
  end
  return sum
end

local function waits_for(job)
  -- Noted for the engine to tell, when the pass has no call of its own to wait for.
  local own = redis.call("HLEN", KEYS[3]) - (redis.call("HGET", KEYS[2], "lost") or 0)
  if own == 0 then redis.call("HSET", KEYS[2], "waits_for", job:match("{(.-)}"), "waits_at_ms", now) end
end

local at, touched, changed, spent = 7, {}, false, 0
local tokens = {0, 0, 0, 0, 0}
for _ = 1, tonumber(ARGV[6]) do
  local chunk, index, call, blob, cost = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local outcome, lost, reused = ARGV[at + 5], ARGV[at + 6] == "1", ARGV[at + 7] == "1"
  local ledger, ledger_seconds = ARGV[at + 8], ARGV[at + 9]
  local usage = ARGV[at + 10]
  at = at + 11
  if call ~= "" and close_mark(index, call, lost, tonumber(cost) or 0) and not lost and blob ~= "" then
    local place = 1
    for count in usage:gmatch("%d+") do
      tokens[place] = tokens[place] + tonumber(count)
      place = place + 1
    end
    if cost ~= "" then
      add("spent_nano", cost)
      spent = spent + tonumber(cost)
    else
      add("unpriced_calls", 1)
    end
    if outcome ~= "failed" then count("bought", 1) end
  end
  if blob ~= "" and not deleted and redis.call("HSETNX", ARGV[3] .. chunk, index, blob) == 1 then
    redis.call("HINCRBY", KEYS[2], "settled", 1)
    redis.call("HINCRBY", KEYS[2], outcome, 1)
    if reused then
      redis.call("HINCRBY", KEYS[2], "reused", 1)
      count("reused", 1)
    end
    touched[chunk] = true
  end
  if ledger ~= "" and not reused then
    if blob ~= "" and outcome ~= "failed" and not deleted then
      local place = table.concat({"paid", ARGV[1], ARGV[2], chunk, index}, "|")
      redis.call("SET", ledger, place, "EX", ledger_seconds)
    elseif is_of(redis.call("GET", ledger), call) then
      redis.call("DEL", ledger)
    end
  end
  changed = true
end

for place, field in ipairs({
  "prompt_tokens", "completion_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens",
}) do
  add(field, tokens[place])
  count(field, tokens[place])
end
if spent > 0 then
  redis.call("HINCRBY", KEYS[2], "spent_nano", spent)
  count("spent_nano", spent)
end
enter()

for chunk in pairs(touched) do
  local size = math.min(chunk_size, prompts - tonumber(chunk) * chunk_size)
  if redis.call("HLEN", ARGV[3] .. chunk) == size and redis.call("ZREM", KEYS[5], chunk) == 1 then
    redis.call("HDEL", KEYS[4], chunk)
    if redis.call("HINCRBY", KEYS[2], "done", 1) * chunk_size >= prompts then
      redis.call("HSET", KEYS[2], "complete", 1)
      redis.call("ZREM", KEYS[6], name)
      if redis.call("EXISTS", KEYS[6]) == 0 then
        redis.call("ZREM", KEYS[11], KEYS[6]:sub(#KEYS[11] + 2))
      end
      redis.call("ZADD", KEYS[7], "XX", now, "job:" .. ARGV[1])
    end
  end
end

local answers, short = {}, false
if at <= #ARGV then
  local job = redis.call("HMGET", KEYS[1], "status", "limit_nano", "spent_nano", "reserved_nano", "unconfirmed_nano")
  local limit = job[2] and job[2] ~= "" and tonumber(job[2])
  local used = tonumber(job[3] or 0) + tonumber(job[4] or 0) + tonumber(job[5] or 0)
  local most, of_day = tonumber(ARGV[5]), 0
  if most then
    local spending = redis.call("HMGET", KEYS[9] .. today, "spent_nano", "unconfirmed_nano")
    of_day = (spending[1] or 0) + (spending[2] or 0) + (redis.call("HGET", KEYS[8], "reserved_nano") or 0)
  end
  while at <= #ARGV do
    local chunk, index, call, reserve = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
    local uncounted, ledger = reserve == "", ARGV[at + 4]
    if uncounted then reserve = "0" end
    local amount = tonumber(reserve)
    at = at + 5
    local mark = redis.call("HGET", KEYS[3], index)
    local answer = "go"
    if mark and mark:sub(1, #call + 1) == call .. "|" then
      answer = "go" -- the same call, sent again
    elseif redis.call("HGET", KEYS[4], chunk) ~= ARGV[4] then
      answer = "unleased"
    elseif redis.call("HEXISTS", ARGV[3] .. chunk, index) == 1 then
      answer = "settled"
    elseif job[1] ~= "running" or halt or (uncounted and (limit or most)) then
      answer = "stopped"
    else
      -- A mark that stands belongs to a worker that vanished with the answer: it may have been billed.
      local previous = mark and mark:match("^(.*)|%d+$")
      if previous then
        local _, more = close_mark(index, previous, true, amount)
        used, of_day = used + more, of_day + more
        if ledger ~= "" and is_of(redis.call("GET", ledger), previous) then redis.call("DEL", ledger) end
      end
      if smoke and smoke ~= "" then
        local tried = redis.call("HMGET", KEYS[2], "settled", "lost")
        local out = tonumber(tried[1] or "0") + redis.call("HLEN", KEYS[3]) - tonumber(tried[2] or "0")
        if out >= tonumber(smoke) and not mark then answer = "smoke" end
      end
      local entry = answer == "go" and ledger ~= "" and redis.call("GET", ledger)
      local buyer = entry and entry:sub(1, 5) ~= "paid|" and bought_by(entry)
      if entry and entry:sub(1, 5) == "paid|" then
        answer = "paid"
      elseif buyer then
        answer = "twin"
        if buyer ~= true then waits_for(buyer) end
      end
      if answer == "go" and limit and used + amount > limit then
        answer = "budget"
        short = true
      elseif answer == "go" and most and of_day + amount > most then
        answer = "day"
        short = true
      end
      if answer == "go" then
        redis.call("HSET", KEYS[3], index, call .. "|" .. reserve)
        add("reserved_nano", reserve)
        -- Longer than any call may take.
        local place = table.concat({"call", call, KEYS[1], KEYS[2], chunk, index}, "|")
        if ledger ~= "" then redis.call("SET", ledger, place, "EX", 1200) end
        held = held + amount
        used, of_day = used + amount, of_day + amount
        changed = true
      end
    end
    answers[#answers + 1] = answer
  end
  enter()
end
if changed then redis.call("HINCRBY", KEYS[1], "version", 1) end
local totals = redis.call("HMGET", KEYS[2], "complete", "settled", "accepted", "failed", "halt")
local state = totals[1] and "complete" or ((totals[5] or not prompts) and "stopped") or "open"
local result = {state, tonumber(totals[2] or 0), tonumber(totals[3] or 0), tonumber(totals[4] or 0),
  tonumber(redis.call("HGET", KEYS[1], "reserved_nano") or 0) - (short and reserved_for_nobody() or 0)}
for _, answer in ipairs(answers) do result[#result + 1] = answer end
return result
