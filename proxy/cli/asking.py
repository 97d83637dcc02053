"""Ask a running proxy over its admin listener."""

import http.client
import json
import socket
import urllib.parse
from collections.abc import Mapping
from typing import Any

from proxy.core.secret import ADMIN
from proxy.settings import Settings, UnixSocket

# Longer than any renewal may take: two token calls and the wait for one under way.
_TIMEOUT = 60.0


class NobodyAnswers(Exception):
    """No proxy answers on the admin listener; the text says why and what to do."""


class _OverUnix(http.client.HTTPConnection):
    """HTTP over a Unix socket.

    Args:
        path: of the socket.
    """

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        """http.client: connect."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def ask_admin(
    settings: Settings, *, method: str, path: str, query: Mapping[str, str] | None = None
) -> tuple[int, dict[str, Any]]:
    """The status and the JSON that a running proxy answers with.

    Args:
        settings: where it listens, and the token that opens it.
        method: GET or POST.
        path: of the route.
        query: parameters.

    Raises:
        NobodyAnswers: no proxy does.
    """
    where = settings.admin_listen
    connection: http.client.HTTPConnection
    if isinstance(where, UnixSocket):
        connection = _OverUnix(where.path)
    else:
        connection = http.client.HTTPConnection(where.host, where.port, timeout=_TIMEOUT)
    headers = {}
    if settings.admin_token is not None:
        headers["Authorization"] = f"Bearer {settings.admin_token.reveal(to=ADMIN)}"
    target = f"{path}?{urllib.parse.urlencode(query)}" if query else path
    try:
        connection.request(method, target, headers=headers)
        reply = connection.getresponse()
        data = reply.read()
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise NobodyAnswers(
            f"no proxy answers on {where} ({reason}).\n"
            "Start it with `nomba-proxy serve`, or name its admin listener: --admin-listen ADDR"
        ) from None
    finally:
        connection.close()
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        answer = {"error": f"HTTP {reply.status}"}
    return reply.status, answer
