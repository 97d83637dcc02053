"""The obvious proxy, as a yardstick: aiohttp's server and one ClientSession, static headers.

    python bench/baseline.py ORIGIN PORT [LOG]

It runs on the event loop that nomba-proxy would run on. Without LOG it writes no access log.
"""

import logging
import os
import ssl
import sys

from aiohttp import ClientSession, DummyCookieJar, TCPConnector, web

from proxy.cli.serve import event_loop

HOP = {"host", "connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade"}


def main(origin: str, port: int, log: str) -> None:
    """Forward to `origin`; `BENCH_TOKEN`, `BENCH_ACCOUNT` and `BENCH_CA` say as whom."""
    pair = {
        "Authorization": f"Bearer {os.environ['BENCH_TOKEN']}",
        "accountId": os.environ["BENCH_ACCOUNT"],
    }
    trust = ssl.create_default_context(cafile=os.environ["BENCH_CA"])

    async def handle(request: web.Request) -> web.StreamResponse:
        headers = {
            name: value for name, value in request.headers.items() if name.lower() not in HOP
        }
        headers |= pair
        async with request.app["session"].request(
            request.method,
            origin + request.raw_path,
            headers=headers,
            data=await request.read() or None,
            allow_redirects=False,
            ssl=trust,
        ) as reply:
            out = web.StreamResponse(status=reply.status)
            for name, value in reply.headers.items():
                if name.lower() not in HOP:
                    out.headers.add(name, value)
            await out.prepare(request)
            async for part in reply.content.iter_any():
                await out.write(part)
            await out.write_eof()
            return out

    async def session(app: web.Application):
        connector = TCPConnector(limit=0)
        app["session"] = ClientSession(
            connector=connector, cookie_jar=DummyCookieJar(), auto_decompress=False
        )
        yield
        await app["session"].close()

    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.cleanup_ctx.append(session)
    app.router.add_route("*", "/{path:.*}", handle)
    access_log = logging.getLogger("aiohttp.access")
    if log:
        access_log.addHandler(logging.FileHandler(log))
        access_log.setLevel(logging.INFO)
    factory = event_loop()
    web.run_app(
        app,
        host="127.0.0.1",
        port=port,
        access_log=access_log if log else None,
        print=None,
        loop=factory() if factory else None,
        backlog=4096,
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "")
