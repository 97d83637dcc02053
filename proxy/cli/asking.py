"""Ask a running proxy over its admin listener."""

import http.client
import json
import socket
import urllib.parse
from collections.abc import Mapping
from typing import Any

from proxy.core.secret import ADMIN
from proxy.settings import Settings, UnixSocket

# What is known is told at once. The other is longer than any renewal may take: two token calls and
# the wait for one under way.
_TOLD, _DONE = 10.0, 60.0


class NobodyAnswers(Exception):
    """No proxy answers on the admin listener; the text says why and what to do."""


class _OverUnix(http.client.HTTPConnection):
    """HTTP over a Unix socket.

    Args:
        path: of the socket.
        timeout: seconds for each step.
    """

    def __init__(self, path: str, *, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """http.client: connect."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def ask_admin(
    settings: Settings, *, method: str, path: str, query: Mapping[str, str]
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
    timeout = _TOLD if method == "GET" else _DONE
    connection: http.client.HTTPConnection
    if isinstance(where, UnixSocket):
        connection = _OverUnix(where.path, timeout=timeout)
    else:
        connection = http.client.HTTPConnection(where.host, where.port, timeout=timeout)
    headers = {}
    if settings.admin_token is not None:
        headers["Authorization"] = f"Bearer {settings.admin_token.reveal(to=ADMIN)}"
    target = f"{path}?{urllib.parse.urlencode(query)}" if query else path
    try:
        connection.request(method, target, headers=headers)
        reply = connection.getresponse()
        data = reply.read()
    except TimeoutError:
        raise NobodyAnswers(
            f"somebody listens on {where}, and says nothing for {timeout:.0f} s.\n"
            "If it is the proxy, it hangs, or is very busy: nomba-proxy doctor tells which process it is"
        ) from None
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
    if reply.status == http.client.UNAUTHORIZED:
        answer["error"] = (
            f"{where} takes who has the proxy's admin token only.\n"
            "Set NOMBA_PROXY_ADMIN_TOKEN_FILE (or admin.token_file) here as it is set there."
        )
    return reply.status, answer
