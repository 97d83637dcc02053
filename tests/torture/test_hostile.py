"""R15: no shape of a request costs much more than its bytes do."""

import asyncio
from statistics import median

import pytest
from harness import LOST, read_reply
from measured import GET, KIB, measured

SIZE = 32 * KIB  # bytes of each request, about


def filled(line, *, size=SIZE):
    """As many lines as fit."""
    return line * (size // len(line))


def head(*fields, target=b"/v1/x"):
    return b"GET %b HTTP/1.1\r\nHost: localhost\r\n%b\r\n" % (target, b"".join(fields))


def body(framing, data):
    return b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\n%b\r\n\r\n%b" % (framing, data)


CHUNKED = b"Transfer-Encoding: chunked"
LONG = 15 * KIB  # what one line may have
SHAPES = {
    "small fields": head(*(b"X-%d: 1\r\n" % number for number in range(120))),
    "the same field": head(filled(b"X: 1\r\n", size=750)),
    "too many fields": head(filled(b"X: 1\r\n")),
    "large fields": head(*(b"X-%d: %b\r\n" % (one, b"v" * LONG) for one in range(2))),
    "names for Connection": head(b"Connection: ", filled(b"a,", size=LONG), b"\r\n"),
    "fields it names": head(
        b"Connection: %b\r\n" % b",".join(b"x%d" % one for one in range(100)),
        *(b"x%d: 1\r\n" % one for one in range(100)),
    ),
    "entries of Via": head(b"Via: ", filled(b"1.1 a, ", size=LONG), b"\r\n"),
    "cookies": head(b"Cookie: ", filled(b"a=b; ", size=LONG), b"\r\n"),
    "cookies of the inspector": head(
        b"Cookie: ", filled(b"nomba_proxy_inspector=b; ", size=LONG), b"\r\n"
    ),
    "spellings of accountId": head(
        *(b"account%bid: %d\r\n" % (b"-" * (one % 50), one) for one in range(120))
    ),
    "Expect": head(b"Expect: ", filled(b"x,", size=LONG), b"\r\n"),
    "query": head(target=b"/v1/x?" + filled(b"a=1&", size=LONG)),
    "segments": head(target=filled(b"/a", size=LONG)),
    "slashes": head(target=b"/v1/x" + filled(b"/", size=LONG)),
    "dot segments": head(target=filled(b"/a/..", size=LONG)),
    "parameters": head(target=b"/v1/x" + filled(b";a", size=LONG)),
    "segments with parameters": head(target=filled(b"/a;b", size=LONG)),
    "semicolons and encoded slashes": head(target=b"/" + filled(b";%2f", size=LONG)),
    "encoded": head(target=b"/" + filled(b"%61", size=LONG)),
    "encoded again and again": head(target=b"/" + filled(b"%25252525252561", size=LONG)),
    "an endless encoding": head(target=b"/%" + filled(b"25", size=LONG) + b"61"),
    "an encoding within the next": head(target=b"/" + b"%" * 7000 + b"3" * 7000 + b"61"),
    "letters that fold to more": head(target=b"/" + filled(b"%EF%B7%BA", size=LONG)),
    "sandbox": head(target=filled(b"/sandbox", size=LONG)),
    "chunks of one byte": body(CHUNKED, filled(b"1\r\nx\r\n") + b"0\r\n\r\n"),
    "chunk extensions": body(CHUNKED, b"1;%b\r\nx\r\n0\r\n\r\n" % (b"a=b;" * (SIZE // 4))),
    "trailers": body(CHUNKED, b"0\r\n" + filled(b"X: 1\r\n", size=750) + b"\r\n"),
    "empty lines": b"\r\n" * 200 + GET,
    "many requests": GET * (SIZE // len(GET)),
    "many refused requests": head(target=b"/../x") * (SIZE // len(head(target=b"/../x"))),
}


async def ask(address, request, times):
    """Send a request so many times, whatever is said to it."""
    count, reader, writer = request.count(b" HTTP/1.1\r\n"), None, None
    for _ in range(times):
        if writer is None:
            reader, writer = await asyncio.open_connection(*address)
        writer.write(request)
        if not await answered(reader, count):
            writer.close()
            writer = None
    if writer is not None:
        writer.close()


async def answered(reader, count):
    """Whether all were answered, and the connection goes on."""
    try:
        async with asyncio.timeout(60):
            for _ in range(count):
                if (await read_reply(reader)).get("Connection") == "close":
                    return False
    except LOST:
        return False
    return True


async def cost(proxy, request, *, each, at_once):
    """What each byte of a request costs: seconds of processor time, and bytes of memory."""
    await asyncio.gather(*(ask(proxy.address, request, 1) for _ in range(at_once)))
    before, memory = proxy.processor(), proxy.resident()
    proxy.forget_peak()
    await asyncio.gather(*(ask(proxy.address, request, each) for _ in range(at_once)))
    used = proxy.processor() - before
    grown = proxy.resident(peak=True) - memory
    return used / (len(request) * each * at_once), grown / (len(request) * at_once)


def plain(size):
    """A request of so many bytes that is nothing special."""
    start = body(b"Content-Length: %d" % size, b"")
    return start + b"x" * size if size > 1000 else head(b"X: %b\r\n" % (b"x" * max(1, size - 46)))


@pytest.mark.timeout(900)
async def test_r15_no_shape_of_a_request_costs_much_more_than_its_bytes(size, figure):
    rounds, times, at_once = size((1, 4, 4), (3, 15, 16))
    ratios, memories = {}, {}
    async with measured() as proxy:
        for shape, request in SHAPES.items():
            count = request.count(b" HTTP/1.1\r\n")
            each = max(1, times // count)
            alike, processor, memory = plain(len(request) // count), [], []
            for _ in range(rounds):
                seconds, grown = await cost(proxy, request, each=each, at_once=at_once)
                as_plain, _ = await cost(proxy, alike, each=times, at_once=16)
                processor.append(seconds / as_plain)
                memory.append(grown)
            ratios[shape], memories[shape] = median(processor), median(memory)
    figure(
        "R15",
        f"{len(SHAPES)} shapes of requests: processor time at most {max(ratios.values()):.0f} times that of "
        f"a plain one of the same size ({max(ratios, key=ratios.get)}), memory at most "
        f"{max(memories.values()):.1f} times its bytes ({max(memories, key=memories.get)})",
    )
    assert max(ratios.values()) < size(200, 100), ratios  # in small it is one round of a few
    assert max(memories.values()) < 100, memories
