"""A request's body, received whole before anything is sent."""

import asyncio

from aiohttp.http import HttpVersion10
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestPayloadError

from proxy.body import Bodies, Body
from proxy.calls import Call, CallerLeft
from proxy.errors import BodyTimeout, HeadInvalid


async def read_body(call: Call, *, length: int, bodies: Bodies, most: int | None) -> Body:
    """The whole body. Whoever gets it closes it.

    Args:
        call: whose body is read.
        length: declared length, or `CHUNKED`.
        bodies: makes it, and refuses what is too much.
        most: bytes it may have, if that is less than everybody's limit.

    Raises:
        BodyTooLarge, BodyTimeout, HeadInvalid: the body did not arrive whole.
        Overloaded: there is no room for it.
        CallerLeft: it will never be whole.
    """
    limits = bodies.limits
    body = bodies.begin(length, most=most)
    if length == 0:
        return body
    content = call.body
    try:
        if content.is_eof():  # as most are: it came with its head
            while not content.at_eof():
                body.add(content.read_nowait())
            return body
        _continue(call)
        async with asyncio.timeout(limits.total):
            while not content.at_eof():
                async with asyncio.timeout(limits.stall):
                    data = await content.readany()
                body.add(data)
    except BaseException as error:
        body.close()
        if isinstance(error, TimeoutError):
            raise BodyTimeout(
                "The body did not arrive in time; nothing was sent to the upstream.",
                hint="Send the whole body that Content-Length or chunked framing announces.",
                close=True,
            ) from None
        if isinstance(error, OSError | HttpProcessingError | RequestPayloadError):
            transport = call.connection.transport
            if transport is None or transport.is_closing():
                raise CallerLeft from None
            raise HeadInvalid("The body is framed wrongly.", close=True) from None
        raise
    return body


def _continue(call: Call) -> None:
    """Answer `Expect: 100-continue` (RFC 9110 section 10.1.1) once we want the body."""
    expected = [value for name, value in call.headers if name.lower() == b"expect"]
    waits = b"100-continue" in (one.strip() for one in b",".join(expected).lower().split(b","))
    transport = call.connection.transport
    if waits and call.version > HttpVersion10 and transport is not None:
        transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
