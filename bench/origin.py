"""A cheap origin: issues tokens and answers everything else with one fixed kilobyte."""

import asyncio
import json
import sys

import httptools

TOKEN = {"access_token": "bench", "refresh_token": "bench", "expires_in": 3600}
BODY = json.dumps({"code": "00", "data": "x" * 990}).encode()


def reply(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


GRANT, ANSWER = reply(json.dumps({"code": "00", "data": TOKEN}).encode()), reply(BODY)


class Origin(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_message_complete(self) -> None:
        self.transport.write(GRANT if self.url.startswith(b"/v1/auth/") else ANSWER)


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Origin, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
