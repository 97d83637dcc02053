"""What a transport does not do by itself: tell what is on its way, and end in a reset."""

import array
import asyncio
import contextlib
import fcntl
import socket
import struct
import termios


def unsent(transport: asyncio.WriteTransport) -> int:
    """Bytes written to a transport that its peer's kernel has not acknowledged.

    The loop hands over more only when a good part of the kernel's buffer is free, which at a
    few kilobytes a second takes minutes; the kernel's own count moves with every segment.
    Where there is no such count, it is the loop's buffer alone.
    """
    queued = array.array("i", [0])
    sock = transport.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError, ValueError):  # it has none, or is closed by now
            fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, queued)  # SIOCOUTQ, tcp(7)
    return transport.get_write_buffer_size() + queued[0]


def unread(transport: asyncio.BaseTransport) -> bool:
    """Whether something has come from a peer that the loop has not taken yet."""
    waiting = array.array("i", [0])
    sock = transport.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError, ValueError):
            fcntl.ioctl(sock.fileno(), termios.FIONREAD, waiting)
    return waiting[0] > 0


def cut_off(transport: asyncio.Transport) -> None:
    """Close so that the peer sees an error, whatever it has read."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
