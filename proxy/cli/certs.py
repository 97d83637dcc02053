"""`nomba-proxy certs`: a local CA and a certificate, for apps whose host is hard-coded."""

import argparse
import contextlib
import fcntl
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from proxy.cli.files import replace
from proxy.local_ca import Pair, Unfit, new_authority, new_leaf, read_pair, vouches
from proxy.settings import Settings

NAMES = ("api.nomba.com", "sandbox.nomba.com", "localhost", "127.0.0.1", "::1")
_MODES = {"ca.pem": 0o644, "ca-key.pem": 0o600, "cert.pem": 0o644, "key.pem": 0o600}
# By its first line a file is known as ours. What reads PEM passes over it (RFC 7468 section 2).
_MARK = "# Made by `nomba-proxy certs`, which makes it anew.\n"
_PRIVATE = "# Keep it here: who has it can pretend to be the hosts that the certificate names.\n"

_NEXT = """\
1. The proxy takes TLS where the app looks for Nomba:
     NOMBA_PROXY_LISTEN=https://127.0.0.1:443
     NOMBA_PROXY_TLS_CERT_FILE={folder}/cert.pem
     NOMBA_PROXY_TLS_KEY_FILE={folder}/key.pem
2. The app finds the proxy by Nomba's name; a line for /etc/hosts of its machine:
     127.0.0.1 {hosts}
   (Only names of upstreams that the proxy has: what comes by another goes to the same place.)
3. The app trusts the CA (ca.pem is no secret, copy it to where the app can read it):
     SSL_CERT_FILE={folder}/ca.pem         OpenSSL, Python, curl, Go, Ruby
     REQUESTS_CA_BUNDLE={folder}/ca.pem    requests (Python)
     NODE_EXTRA_CA_CERTS={folder}/ca.pem   Node.js
     keytool -importcert -noprompt -alias nomba-proxy -file {folder}/ca.pem \\
       -keystore trust.p12 -storetype PKCS12 -storepass changeit
     java -Djavax.net.ssl.trustStore=trust.p12 -Djavax.net.ssl.trustStorePassword=changeit …
   All but NODE_EXTRA_CA_CERTS replace what the app trusts otherwise: an app that calls other hosts
   too needs both in one file. docs/hard-coded-hosts.md has that, containers and port 443."""


class _Refused(Exception):
    """The command cannot be carried out; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class _Made:
    authority: Pair
    leaf: Pair
    kept: bool  # whether the CA was there already


def certs(settings: Settings, arguments: argparse.Namespace) -> int:
    """Make what is missing, and the certificate anew; the exit code."""
    folder = Path(arguments.dir) if arguments.dir else settings.state_dir / "certs"
    folder = folder.absolute()
    try:
        made = _make(folder, names=arguments.name, fresh=arguments.new_ca, now=datetime.now(UTC))
    except _Refused as error:
        print(f"nomba-proxy: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"nomba-proxy: {folder}: {error.strerror or error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(_described(folder, made), indent=2))
    else:
        _tell(folder, made, hosts=_hosts(settings))
    return 0


def _make(folder: Path, *, names: Sequence[str], fresh: bool, now: datetime) -> _Made:
    _prepare(folder)
    with _locked(folder):
        files = {name: _read(folder / name) for name in _MODES}
        old = None if fresh else _authority(folder, files, now=now)
        if old is not None:
            foreign = [one for one in names if one not in old.names]
            if foreign:
                raise _Refused(
                    f"the CA in {folder} is for {', '.join(old.names)}, and cannot vouch for "
                    f"{', '.join(foreign)}.\n--new-ca makes another; apps have to trust it anew."
                )
        authority = old or new_authority(list(dict.fromkeys((*NAMES, *names))), now=now)
        before = None if old is None else _leaf(old, files)
        leaf = new_leaf(authority, now=now, key=None if before is None else before.key)
        if old is None:
            _write(folder / "ca-key.pem", _PRIVATE + authority.key_pem)
            _write(folder / "ca.pem", authority.certificate_pem)
        if before is None:
            _write(folder / "key.pem", _PRIVATE + leaf.key_pem)
        _write(folder / "cert.pem", leaf.certificate_pem + authority.certificate_pem)
    return _Made(authority, leaf, kept=old is not None)


# -- the folder --------------------------------------------------------------------------


def _prepare(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = folder.stat()
    if found.st_mode & 0o022:
        raise _Refused(
            f"others can write into {folder}, and could put a CA of their own there.\n"
            f"Close it (chmod go-w {folder}), or name another with --dir."
        )
    if os.geteuid() not in {0, found.st_uid} and found.st_uid != 0:
        raise _Refused(f"{folder} is another user's; name a folder of your own with --dir.")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read(path: Path) -> str:
    """A file of ours; "" if there is none."""
    try:
        text = path.read_text("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    if not text.startswith(_MARK):
        raise _Refused(
            f"{path} was not made by `nomba-proxy certs`, so it stays as it is.\n"
            "Move it away, or name another folder with --dir."
        )
    return text


def _write(path: Path, text: str) -> None:
    replace(path, (_MARK + text).encode(), mode=_MODES[path.name])


def _authority(folder: Path, files: dict[str, str], *, now: datetime) -> Pair | None:
    """The CA that is there; None if there is none yet.

    It is not replaced by itself: whoever trusts it would have to be told.
    """
    if not files["ca.pem"] and not files["ca-key.pem"]:
        return None
    why = ""
    try:
        found = read_pair(files["ca.pem"], files["ca-key.pem"])
        if found.names and now < found.ends:
            return found
        why = f"it ended on {found.ends:%Y-%m-%d}"
    except Unfit as error:
        why = str(error)
    for name in ("ca.pem", "ca-key.pem"):
        why = why if files[name] else f"{name} is not there"
    raise _Refused(
        f"the CA in {folder} cannot be used: {why}.\n"
        "--new-ca makes another; apps have to trust it anew."
    )


def _leaf(authority: Pair, files: dict[str, str]) -> Pair | None:
    """The certificate that is there, if it can be renewed with the key it has."""
    try:
        found = read_pair(files["cert.pem"], files["key.pem"])
    except Unfit:
        return None
    return found if vouches(authority, found) else None


# -- what is told ------------------------------------------------------------------------


def _described(folder: Path, made: _Made) -> dict[str, object]:
    return {
        "ca_file": str(folder / "ca.pem"),
        "cert_file": str(folder / "cert.pem"),
        "key_file": str(folder / "key.pem"),
        "names": made.authority.names,
        "ca_sha256": made.authority.fingerprint,
        "ca_kept": made.kept,
        "ca_expires": _iso(made.authority.ends),
        "expires": _iso(made.leaf.ends),
    }


def _hosts(settings: Settings) -> str:
    """Names of the upstreams, for a hosts entry. The sandbox's must not lead to production."""
    found = [one.origin.host for one in settings.upstreams if one.origin.host in NAMES[:2]]
    return " ".join(dict.fromkeys(found)) or NAMES[0]


def _tell(folder: Path, made: _Made, *, hosts: str) -> None:
    authority, names = made.authority, made.authority.names
    kept = "it was there" if made.kept else "NEW: apps have to trust it"
    print(f"{folder}:")
    print(f"  ca.pem      the local CA, until {authority.ends:%Y-%m-%d}; {kept}")
    print("  ca-key.pem  its key; it stays here")
    print(f"  cert.pem    the certificate of the proxy, until {made.leaf.ends:%Y-%m-%d}")
    print("  key.pem     its key, for the proxy alone")
    print(f"names   {', '.join(names)}, and nothing else")
    print(f"CA      sha256 {authority.fingerprint}\n")
    print(_NEXT.format(folder=folder, hosts=hosts))


def _iso(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
