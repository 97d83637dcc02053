-- wrk ... -s load.lua URL -- METHOD BODY_BYTES ALIKE: one request over and over, or each with a
-- query and an id of its own if ALIKE is "no"; the result as one line.
local marks = { 50, 90, 99, 99.9 }

function init(args)
  wrk.method = args[1]
  local size = tonumber(args[2])
  if size > 0 then
    wrk.body = string.rep("x", size)
    wrk.headers["Content-Type"] = "application/json"
  end
  if args[3] == "no" then
    local number, path = 0, wrk.path
    function request()
      number = number + 1
      wrk.headers["X-Request-Id"] = "request-" .. number
      return wrk.format(nil, path .. "?number=" .. number)
    end
  end
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    "RESULT requests=%d microseconds=%d bytes=%d connect=%d read=%d write=%d timeout=%d status=%d",
    summary.requests, summary.duration, summary.bytes,
    errors.connect, errors.read, errors.write, errors.timeout, errors.status))
  for _, mark in ipairs(marks) do
    io.write(string.format(" p%s=%d", mark, latency:percentile(mark)))
  end
  io.write("\n")
end
