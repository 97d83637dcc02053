"""The obvious proxy, as a yardstick: aiohttp's server and one ClientSession, static headers."""

import sys

from aiohttp import ClientSession, DummyCookieJar, TCPConnector, web

HOP = {"host", "connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade"}


def main(origin: str, port: int) -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        headers = {
            name: value for name, value in request.headers.items() if name.lower() not in HOP
        }
        headers["Authorization"] = "Bearer static"
        headers["accountId"] = "static"
        async with request.app["session"].request(
            request.method,
            origin + request.raw_path,
            headers=headers,
            data=await request.read() or None,
            allow_redirects=False,
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
        connector = TCPConnector(limit=0, force_close="--no-pool" in sys.argv)
        app["session"] = ClientSession(
            connector=connector, cookie_jar=DummyCookieJar(), auto_decompress=False
        )
        yield
        await app["session"].close()

    app = web.Application()
    app.cleanup_ctx.append(session)
    app.router.add_route("*", "/{path:.*}", handle)
    web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=None)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
