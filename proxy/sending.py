"""What is still to be read by a peer: the loop's buffer alone tells of a slow one too late."""

import array
import asyncio
import contextlib
import fcntl
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
        with contextlib.suppress(OSError):
            fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, queued)  # SIOCOUTQ, tcp(7)
    return transport.get_write_buffer_size() + queued[0]
