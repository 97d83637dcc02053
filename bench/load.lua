-- wrk ... -s load.lua URL -- METHOD BODY_BYTES: one request over and over; the result as one line.
local marks = { 50, 90, 99, 99.9 }

function init(args)
  wrk.method = args[1]
  local size = tonumber(args[2])
  if size > 0 then
    wrk.body = string.rep("x", size)
    wrk.headers["Content-Type"] = "application/json"
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
