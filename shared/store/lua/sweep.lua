#!lua flags=allow-oom
-- sweep.lua: hand out rows whose time has come, each once per grace period however many sweepers ask.
-- KEYS[1] due clock
-- ARGV[1] JSON:
--   grace_ms  a row handed out is due again after so long, unless somebody changes that
--   scan      rows looked at, the longest due first
--   rows      kind → most rows of it to hand out; other kinds are left alone
--   share     kind → most rows of it that one tenant may have, those it has already included
--   held      kind → tenant → rows it has already
--   keys      kind → [key of the row that names the tenant, with %s for the id; its field; pattern of the tenant in it];
--             absent for a kind that belongs to no tenant
-- The next row of a kind goes to the tenant that has the fewest, the one whose row is longest due among equals.  When
-- more is due than is looked at, what is not handed out goes to the end of what is due, so that it hides nothing.
-- Returns {member, tenant, member, …}.
local asked = cjson.decode(ARGV[1])
local clock = redis.call("TIME")
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local due = redis.call("ZRANGEBYSCORE", KEYS[1], "-inf", now, "LIMIT", 0, asked.scan)
local lines = {} -- kind → list of {tenant, has, next, members}, in the order of their longest due row
local line_of = {}
for _, member in ipairs(due) do
  local kind, id = member:match("^(%w+):(.*)$")
  if kind and asked.rows[kind] then
    local place = asked.keys[kind]
    local text = place and redis.call("HGET", string.format(place[1], id), place[2]) or ""
    local tenant = (not place or place[3] == "") and text or text:match(place[3]) or ""
    local name = kind .. ":" .. tenant
    if not line_of[name] then
      local held = asked.held[kind] and asked.held[kind][tenant] or 0
      line_of[name] = {tenant = tenant, has = held, next = 1, members = {}}
      lines[kind] = lines[kind] or {}
      table.insert(lines[kind], line_of[name])
    end
    table.insert(line_of[name].members, member)
  end
end
local found, taken = {}, {}
for kind, of_kind in pairs(lines) do
  for _ = 1, asked.rows[kind] do
    local best
    for _, line in ipairs(of_kind) do
      if line.members[line.next] and line.has < asked.share[kind] and (not best or line.has < best.has) then
        best = line
      end
    end
    if not best then break end
    local member = best.members[best.next]
    best.next, best.has = best.next + 1, best.has + 1
    redis.call("ZADD", KEYS[1], now + asked.grace_ms, member)
    taken[member] = true
    found[#found + 1] = member
    found[#found + 1] = best.tenant
  end
end
if #due >= asked.scan then
  for _, member in ipairs(due) do
    if not taken[member] then redis.call("ZADD", KEYS[1], now, member) end
  end
end
return found
