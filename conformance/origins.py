"""What the suites ask, as WSGI: `python origins.py httpbin|webdav|git|plain PORT FOLDER`, in .venv-conformance.

Each answers the three token calls beside its own, so that a proxy can stand in front of it.
"""

import json
import logging
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlsplit

from cheroot.wsgi import Server

_THREADS, _WAITING = 300, 1024  # more than the proxy has connections
_LONG = 16 * 1024 * 1024  # bytes
_LIFE = 3600  # seconds of a token; longer than any suite runs
App = Callable[[dict, Callable], Iterable[bytes]]


def with_tokens(app: App) -> App:
    """Answer as Nomba what is below /v1/auth/token, and leave the rest to `app`."""

    def answer(environ: dict, start_response: Callable) -> Iterable[bytes]:
        if not environ["PATH_INFO"].startswith("/v1/auth/token/"):
            return app(environ, start_response)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + _LIFE))
        data = {
            "access_token": secrets.token_hex(200),
            "refresh_token": secrets.token_hex(16),
            "expiresAt": expires,
        }
        body = json.dumps({"code": "00", "description": "Success", "data": data}).encode()
        fields = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        start_response("200 OK", fields)
        return [body]

    return answer


def httpbin(_folder: Path) -> App:
    from httpbin import app

    return app


def webdav(folder: Path) -> App:
    from wsgidav.wsgidav_app import WsgiDAVApp

    logging.getLogger("wsgidav").setLevel(logging.ERROR)
    app = WsgiDAVApp(
        {
            "provider_mapping": {"/": str(folder)},
            "simple_dc": {"user_mapping": {"*": True}},  # everyone
            "lock_storage": True,
            "property_manager": True,
            "logging": {"enable": False},
            "verbose": 0,
        }
    )

    def answer(environ: dict, start_response: Callable) -> Iterable[bytes]:
        # COPY and MOVE name where to by the address that the caller knows (RFC 4918 section 10.3). A
        # WebDAV server behind any proxy has to be told that it is its own; so it is told wsgidav.
        host = urlsplit(environ.get("HTTP_DESTINATION", "")).netloc
        if host.startswith("127.0.0.1:"):
            environ["HTTP_X_FORWARDED_HOST"] = host
        return app(environ, start_response)

    return answer


def git(folder: Path) -> App:
    """Git's own program for smart HTTP (git-http-backend(1)), which is a CGI (RFC 3875)."""

    def answer(environ: dict, start_response: Callable) -> Iterable[bytes]:
        body = environ["wsgi.input"].read()  # cheroot takes chunks apart and stops at the end
        names = ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING", "CONTENT_TYPE", "REMOTE_ADDR")
        env = {name: environ.get(name, "") for name in names}
        env |= {
            name: value
            for name, value in environ.items()
            if name in {"HTTP_CONTENT_ENCODING", "HTTP_GIT_PROTOCOL", "HTTP_ACCEPT"}
        }
        env |= {"CONTENT_LENGTH": str(len(body)), "PATH": os.environ["PATH"]}
        env |= {"GIT_PROJECT_ROOT": str(folder), "GIT_HTTP_EXPORT_ALL": "1", "HOME": str(folder)}
        done = subprocess.run(
            ["git", "http-backend"], input=body, env=env, capture_output=True, check=False
        )
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        fields = [tuple(line.split(": ", 1)) for line in head.decode("latin-1").split("\r\n")]
        status = next((value for name, value in fields if name.lower() == "status"), "200 OK")
        start_response(status, [field for field in fields if field[0].lower() != "status"])
        return [content]

    return answer


def plain(_folder: Path) -> App:
    """As many bytes as the path says, at once: what is slow is not this."""
    content = b"x" * _LONG

    def answer(environ: dict, start_response: Callable) -> Iterable[bytes]:
        size = int(environ["PATH_INFO"].strip("/"))
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(size))])
        return [content[:size]]

    return answer


if __name__ == "__main__":
    kind, port, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    app = {"httpbin": httpbin, "webdav": webdav, "git": git, "plain": plain}[kind](folder)
    server = Server(
        ("127.0.0.1", port),
        with_tokens(app),
        numthreads=_THREADS,
        max=_THREADS,
        request_queue_size=_WAITING,
    )
    try:
        server.start()
    except KeyboardInterrupt:
        server.stop()
