"""Where the proxies forward to: one nginx that answers and issues tokens."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import trustme
from lab import CannotMeasure, Process, environment, free_port

CONFIGS = Path(__file__).parent / "configs"
KIB = 1024
SHORT_LIFE = 2  # seconds; a token is renewed when a quarter of it is left
ACCOUNT = "6a3e5ad1-5bd0-4d23-b1a5-7e41d1a2b3c4"
# As long as Nomba's: a JWT has 300 to 600 characters. The last 32 tell one from another.
_TOKEN_PREFIX = ("bench-token-" * 36)[:388]
STATIC_TOKEN = _TOKEN_PREFIX + "0" * 32  # of proxies that cannot fetch one


@dataclass(frozen=True, kw_only=True)
class Origin:
    """One that is up.

    Attributes:
        process: the nginx.
        port: of plain HTTP.
        short_port: the same, but tokens live `SHORT_LIFE` seconds.
        tls_port: HTTPS, for the name `localhost`.
        ca: the certificate that it is checked with (PEM).
    """

    process: Process
    port: int
    short_port: int
    tls_port: int
    ca: Path


def fill(template: Path, *, target: Path, **values: object) -> Path:
    """Write `template` to `target` with every `@name@` replaced; it is `target`."""
    text = template.read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    target.write_text(text)
    return target


def json_reply(size: int) -> str:
    """An envelope of exactly so many bytes."""
    empty = json.dumps({"code": "00", "description": "Success", "data": ""})
    return empty[:-2] + "x" * (size - len(empty)) + empty[-2:]


def nginx_user() -> str:
    """As root, nginx would run its workers as somebody who cannot read our folder."""
    return "user root;" if os.geteuid() == 0 else ""


def need(*programs: str) -> None:
    """Find programs.

    Raises:
        CannotMeasure: one is absent.
    """
    for program, package in (("wrk", "wrk"), ("nginx", "nginx-light"), ("taskset", "util-linux")):
        if program in programs and not find(program):
            raise CannotMeasure(
                f"{program} is not installed, and nothing can be measured without it:\n"
                f"  apt-get install {package}"
            )


def find(program: str) -> str | None:
    """Its path; Debian keeps servers where PATH may not lead."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@contextlib.contextmanager
def origin(folder: Path, *, cores: tuple[int, ...]) -> Iterator[Origin]:
    """Bring one up on these cores.

    Args:
        folder: for its files.
        cores: where it runs.

    Raises:
        CannotMeasure: there is no nginx, or it does not start.
    """
    need("nginx", "taskset")
    folder.mkdir()
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    leaf.private_key_pem.write_to_path(folder / "key.pem")
    for at, pem in enumerate(leaf.cert_chain_pems):
        pem.write_to_path(folder / "cert.pem", append=at > 0)
    (folder / "100k.json").write_text(json_reply(100 * KIB))
    (folder / "10m.json").write_text(json_reply(10 * KIB * KIB))
    port, short_port, tls_port = free_port(), free_port(), free_port()
    config = fill(
        CONFIGS / "origin.conf",
        target=folder / "nginx.conf",
        user=nginx_user(),
        folder=folder,
        port=port,
        short_port=short_port,
        tls_port=tls_port,
        short_life=SHORT_LIFE,
        small=json_reply(KIB),
        account=ACCOUNT,
        token=_TOKEN_PREFIX,
    )
    command = [find("nginx") or "nginx", "-p", str(folder), "-e", "stderr", "-c", str(config)]
    process = Process(command, cores=cores, output=folder / "output", env=environment())
    try:
        for one in (port, short_port, tls_port):
            process.listens(one)
        yield Origin(
            process=process,
            port=port,
            short_port=short_port,
            tls_port=tls_port,
            ca=folder / "ca.pem",
        )
    finally:
        process.stop()
