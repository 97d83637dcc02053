"""A collector of spans: OTLP over HTTP, on a real socket."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


def plain(value):
    """An attribute's value."""
    return getattr(value, value.WhichOneof("value"))


@dataclass(frozen=True)
class Span:
    """One span as it came."""

    name: str
    kind: int
    trace: str
    id: str
    parent: str
    start: int
    end: int
    failed: bool
    attributes: dict = field(hash=False)


SERVER, CLIENT = 2, 3


class Collector:
    """What came, and how it is answered: `status`, or not at all if that is None; to be sent to
    `location`, if there is one."""

    def __init__(self):
        self.spans = []
        self.bodies = []
        self.heads = []
        self.resource = {}
        self.status = 200
        self.location = ""
        self.port = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    async def come(self, count):
        """Wait for so many spans."""
        for _ in range(1000):
            if len(self.spans) >= count:
                return self.spans
            await asyncio.sleep(0.02)
        raise AssertionError(f"{len(self.spans)} of {count} spans came: {self.spans}")

    def named(self, *names):
        return [one for one in self.spans if one.name in names]

    async def serve(self, reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                lines = head.lower().split(b"\r\n")
                [length] = [int(one[15:]) for one in lines if one.startswith(b"content-length:")]
                body = await reader.readexactly(length)
                if self.status is None:
                    await asyncio.sleep(60)
                elif self.status == 200:
                    self.take(body)
                more = f"Location: {self.location}\r\n".encode() if self.location else b""
                writer.write(b"HTTP/1.1 %d X\r\n%sContent-Length: 0\r\n\r\n" % (self.status, more))
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    def take(self, body):
        request = ExportTraceServiceRequest.FromString(body)
        self.bodies.append(body)
        for resource in request.resource_spans:
            self.resource = {one.key: plain(one.value) for one in resource.resource.attributes}
            for scope in resource.scope_spans:
                assert scope.scope.name == "nomba-proxy"
                for one in scope.spans:
                    attributes = {every.key: plain(every.value) for every in one.attributes}
                    assert not one.events
                    assert not one.links
                    ids = (one.trace_id.hex(), one.span_id.hex(), one.parent_span_id.hex())
                    times = (one.start_time_unix_nano, one.end_time_unix_nano)
                    failed = one.status.code == 2
                    self.spans.append(Span(one.name, one.kind, *ids, *times, failed, attributes))


@asynccontextmanager
async def collecting():
    collector, tasks = Collector(), set()

    async def serve(reader, writer):
        task = asyncio.current_task()
        tasks.add(task)
        try:
            await collector.serve(reader, writer)
        finally:
            tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    collector.port = server.sockets[0].getsockname()[1]
    try:
        yield collector
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
