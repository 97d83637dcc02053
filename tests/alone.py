"""A machine of a test's own: its hosts file, its DNS server, its ports from 1 on.

Namespaces of Linux do it, for one function of a test's file. They end with it, and with them
whatever it started.
"""

import asyncio
import fcntl
import functools
import json
import os
import runpy
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from harness import environ

OWN_ADDRESS = "198.51.100.1"  # of that machine
_TESTS = Path(__file__).parent
_UNSHARE = ("unshare", "--map-root-user", "--mount", "--net", "--pid", "--fork", "--kill-child")
_LIMIT = 50  # seconds
_TYPES = {1: "A", 28: "AAAA"}
_KNOWN_NOWHERE = 3  # NXDOMAIN


@functools.cache
def _refusal() -> str:
    """Why this machine makes no other one; "" if it does."""
    if shutil.which("unshare") is None:
        return "unshare is not installed"
    done = subprocess.run(  # what is mounted in there is seen nowhere else
        [*_UNSHARE, "mount", "--bind", "/etc/hosts", "/etc/hosts"],
        capture_output=True,
        timeout=20,
        check=False,
    )
    return done.stderr.decode() if done.returncode else ""


async def alone(function, *, hosts: str = "", nameserver: str = "127.0.0.1", **arguments):
    """Call an async function of a test's file on a machine of its own; what it returns.

    `hosts` are lines of its hosts file. Arguments and result are made of what JSON has.
    """
    if refusal := _refusal():
        told = f"no namespaces here, so nothing with a hosts file is tested: {refusal}"
        if os.environ.get("CI"):
            pytest.fail(told)
        pytest.skip(told)
    process = await asyncio.create_subprocess_exec(
        *(*_UNSHARE, sys.executable, str(Path(__file__))),
        env=environ(PYTHONPATH=str(_TESTS)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    order = {
        "file": function.__code__.co_filename,
        "name": function.__name__,
        "hosts": f"127.0.0.1 localhost\n{hosts}\n",
        "resolv.conf": f"nameserver {nameserver}\n",
        "arguments": arguments,
    }
    try:
        out, err = await asyncio.wait_for(
            process.communicate(json.dumps(order).encode()), _LIMIT + 5
        )
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, err.decode()
    return json.loads(out)


class Dns(asyncio.DatagramProtocol):
    """A DNS server (RFC 1035) that knows a table of `NAME A` and `NAME AAAA`; others do not exist.

    `asked` are its questions, in order.
    """

    def __init__(self, table: dict[str, list[str]]) -> None:
        self.table = table
        self.asked: list[str] = []

    @classmethod
    async def started(cls, table: dict[str, list[str]]) -> "Dns":
        loop = asyncio.get_running_loop()
        address = ("127.0.0.1", 53)
        _, server = await loop.create_datagram_endpoint(lambda: cls(table), local_addr=address)
        return server

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        at, labels = 12, []
        while length := data[at]:
            labels.append(data[at + 1 : at + 1 + length].decode())
            at += 1 + length
        name = ".".join(labels).lower()
        (number,) = struct.unpack_from("!H", data, at + 1)
        question = f"{name} {_TYPES.get(number, number)}"
        self.asked.append(question)
        exists = any(known.partition(" ")[0] == name for known in self.table)
        found = self.table.get(question, [])
        family = socket.AF_INET6 if number == 28 else socket.AF_INET
        records = b""
        for one in found:  # of the name that was asked for (0xC00C), for no time at all
            packed = socket.inet_pton(family, one)
            records += struct.pack("!HHHIH", 0xC00C, number, 1, 0, len(packed)) + packed
        flags = 0x8180 | (0 if exists else _KNOWN_NOWHERE)
        head = data[:2] + struct.pack("!HHHHH", flags, 1, len(found), 0, 0)
        self.transport.sendto(head + data[12 : at + 5] + records, addr)


def _bring_up_loopback() -> None:
    """Bring the one interface up, and give the machine an address beside those of loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS
        address = struct.pack("Hxx4s8x", socket.AF_INET, socket.inet_aton(OWN_ADDRESS))
        fcntl.ioctl(sock, 0x8916, struct.pack("16s16s8x", b"lo:1", address))  # SIOCSIFADDR


def _main() -> None:
    order = json.load(sys.stdin)
    _bring_up_loopback()
    files = {name: order[name] for name in ("hosts", "resolv.conf")}
    if Path("/etc/nsswitch.conf").exists():
        files["nsswitch.conf"] = "hosts: files dns\n"
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            ours = Path(folder) / name
            ours.write_text(text)
            subprocess.run(["mount", "--bind", str(ours), f"/etc/{name}"], check=True)
        function = runpy.run_path(order["file"])[order["name"]]

        async def limited():
            async with asyncio.timeout(_LIMIT):
                return await function(**order["arguments"])

        json.dump(asyncio.run(limited()), sys.stdout)


if __name__ == "__main__":
    _main()
