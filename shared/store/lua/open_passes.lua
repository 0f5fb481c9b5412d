#!lua flags=allow-oom
-- open_passes.lua: the passes that one pump draws from, shared out evenly among the tenants that have any.
-- KEYS[1] tenants with open passes, also the prefix of each one's passes
-- ARGV[1] most passes  [2] ms after which others have their turn, when there are more tenants than that
-- Every tenant has its longest open pass in, before any has its second, and so on: no tenant fills the window.
-- Returns {tenant, `job id/name`, tenant, …} in that order.
local room = tonumber(ARGV[1])
local tenants = redis.call("ZRANGE", KEYS[1], 0, -1)
local first = 0
if #tenants > room then
  local clock = redis.call("TIME")
  first = math.floor((clock[1] * 1000 + math.floor(clock[2] / 1000)) / tonumber(ARGV[2])) * room % #tenants
end
-- Water-filling: nobody's part can be larger than an even share of what those with fewer passes leave.
local sorted, some = {}, {}, {}
for i = 1, math.min(#tenants, room) do
  local tenant = tenants[(first + i - 1) % #tenants + 1]
  some[i] = tenant
  sorted[i] = redis.call("ZCARD", KEYS[1] .. ":" .. tenant)
end
table.sort(sorted)
local level, left = 0, room
for i, count in ipairs(sorted) do
  level = math.ceil(left / (#sorted - i + 1))
  if count >= level then break end
  left = left - count
end
local passes = {}
for i, tenant in ipairs(some) do
  passes[i] = redis.call("ZRANGE", KEYS[1] .. ":" .. tenant, 0, level - 1)
end
local found = {}
for rank = 1, level do
  for i, tenant in ipairs(some) do
    if passes[i][rank] and #found < 2 * room then
      found[#found + 1] = tenant
      found[#found + 1] = passes[i][rank]
    end
  end
end
return found
