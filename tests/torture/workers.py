"""Two upstream workers on one port that are killed and replaced, each request noted before its answer.

    python workers.py PORT LEDGER KILLS SECONDS

Kills a worker `KILLS` times, `SECONDS` apart, then says `done` and waits for its input to end.
"""

import asyncio
import json
import os
import random
import signal
import socket
import sys
import time

GRANT = json.dumps({"code": "00", "data": {"access_token": "t", "expires_in": 3600}}).encode()


def reply(body):
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


async def work(port, ledger, listens):
    note = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def serve(reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = 0
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        length = int(line[15:])
                body = await reader.readexactly(length)
                if b"/auth/token/" in head.partition(b"\r\n")[0]:
                    writer.write(reply(GRANT))
                    continue
                os.write(note, body + b"\n")
                if random.random() < 0.5:  # between the work and its answer
                    await asyncio.sleep(random.random() / 200)
                writer.write(reply(body))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", port))
    server = await asyncio.start_server(serve, sock=sock, backlog=512)
    os.close(listens)
    await server.serve_forever()


def spawn(port, ledger):
    """Start a worker that listens: a machine that is slow to do so sees no fewer requests."""
    reading, listens = os.pipe()
    child = os.fork()
    if not child:
        random.seed()
        try:
            asyncio.run(work(port, ledger, listens))
        finally:
            os._exit(0)
    os.close(listens)
    os.read(reading, 1)  # its end
    os.close(reading)
    return child


def main(port, ledger, kills, seconds):
    children = [spawn(port, ledger), spawn(port, ledger)]
    print("ready", flush=True)
    for number in range(kills):
        time.sleep(seconds)
        victim = children[number % 2]
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
        children[number % 2] = spawn(port, ledger)
    print("done", flush=True)
    sys.stdin.read()
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
