-- Puts `Retry-After` and `Backoff` on the 503s of an application that knows nothing of them: the whole seconds that pyproxy
-- tells at /__heartbeat__ ([http] listen). STATUS_HOST (an address) and STATUS_PORT in the environment say where that is.
--
-- In peace nothing is asked; while there are 503s, pyproxy is asked four times a second at most, however many they are.

local HOST = os.getenv("STATUS_HOST") or "127.0.0.1"
local PORT = tonumber(os.getenv("STATUS_PORT") or 6381)
local FRESH_S = 0.25  -- for so long an answer is good
local TIMEOUT_S = 1
local SOON = "1"      -- all shards are well: it is over, or has just begun and is not known yet
local UNKNOWN = "30"  -- pyproxy says nothing, nor does the application

local told            -- seconds as text; nil: it could not be asked
local asked_at = -FRESH_S

local function now()
  local at = core.now()
  return at.sec + at.usec / 1e6
end

local function ask()
  local socket = core.tcp()
  socket:settimeout(TIMEOUT_S)
  if not socket:connect(HOST, PORT) then return nil end
  socket:send("GET /__heartbeat__ HTTP/1.0\r\nHost: pyproxy\r\n\r\n")
  local status = (socket:receive("*l") or ""):match("^HTTP/1%.%d (%d%d%d)")
  local seconds
  while status do
    local line = socket:receive("*l")
    if not line or line == "" or line == "\r" then break end
    seconds = seconds or line:match("^[Bb]ackoff: *(%d+)")
  end
  socket:close()
  return status == "200" and SOON or seconds
end

core.register_action("backoff", { "http-res" }, function(txn)
  if now() - asked_at >= FRESH_S then
    asked_at = now()  -- first: meanwhile others take what was told before
    told = ask()
  end
  local own = txn.f:res_fhdr("Retry-After")
  local seconds = told or (own ~= "" and own) or UNKNOWN
  txn.http:res_set_header("Retry-After", seconds)
  txn.http:res_set_header("Backoff", seconds)
  -- or a page of another origin may not read them
  txn.http:res_add_header("Access-Control-Expose-Headers", "Retry-After, Backoff")
end)
