"""The traffic listeners: where they are, and what they need."""

import os
import ssl
import stat
from collections.abc import Iterable
from pathlib import Path

from proxy.core.caller import Roster
from proxy.core.certificate import expires_at
from proxy.core.secret import Secret
from proxy.settings.addresses import Address, Listener, UnixSocket, parse_listener
from proxy.settings.effective import Tls
from proxy.settings.files import open_file
from proxy.settings.model import SettingsModel, TlsSettings
from proxy.settings.sources import Report

_ANYWHERE = Listener(Address("127.0.0.1", 0))


def read_listeners(texts: Iterable[str], *, report: Report) -> tuple[Listener, ...]:
    """The listeners in a setting; problems, and any free port, where it names none."""
    found: list[Listener] = []
    for text in texts:
        try:
            one = parse_listener(text)
        except ValueError as error:
            report.problem("listen", f"{text!r}: {error}")
            continue
        if one.at is None:
            report.warnings.append(f"listen: {one} is no listening socket here")
        fixed = not isinstance(one.at, Address) or one.at.port
        if fixed and any(one.at == other.at and one.at is not None for other in found):
            report.problem("listen", f"{text!r} is there twice")
        found.append(one)
    if not found and not report.problems:
        report.problem("listen", "names nothing", hint="Write host:port, or leave it out.")
    return tuple(found) or (_ANYWHERE,)


def read_admin(text: str, *, report: Report) -> Address | UnixSocket:
    """Where the admin listener is; a problem, and any free port, if that says nowhere."""
    why = "the admin listener is host:port or unix:///path"
    try:
        found = parse_listener(text)
    except ValueError as error:
        why = str(error)
    else:
        if found.at is not None and found.descriptor is None and not found.tls:
            return found.at
    report.problem("admin.listen", f"{text!r}: {why}")
    return Address("127.0.0.1", 0)


def note_admin(at: Address | UnixSocket, *, token: Secret | None, report: Report) -> None:
    """Warn of an admin listener that nobody can operate the proxy by."""
    if isinstance(at, Address) and not at.loopback and token is None:
        report.warnings.append(
            f"admin.listen: {at} can be reached from other machines, so without admin.token_file it "
            "answers no operator, not even one on this machine"
        )


def read_tls(model: TlsSettings, *, listeners: tuple[Listener, ...], report: Report) -> Tls | None:
    """What listeners speak TLS with; None if none does."""
    wanted = any(one.tls for one in listeners)
    files = {
        "tls.cert_file": model.cert_file,
        "tls.key_file": model.key_file,
        "tls.client_ca_file": model.client_ca_file,
    }
    if not wanted:
        if given := [key for key, path in files.items() if path]:
            report.warnings.append(f"{given[0]} is of no use: no listener begins with https://")
        return None
    for key in ("tls.cert_file", "tls.key_file"):
        if not files[key]:
            report.problem(
                key,
                "a listener begins with https:// and needs it",
                hint="For this machine, nomba-proxy certs makes one.",
            )
    if not model.cert_file or not model.key_file:
        return None
    paths = tuple(Path(path) for path in files.values() if path)
    tls = Tls(paths, lambda: _make(model), lambda: _expires(model), model.client_required)
    try:
        tls.make()
    except ValueError as error:
        report.problem("tls", str(error))
        return None
    if stat.S_IMODE(Path(model.key_file).stat().st_mode) & stat.S_IROTH:
        report.warnings.append(f"tls.key_file: everybody on this machine may read {model.key_file}")
    return tls


def _make(model: TlsSettings) -> ssl.SSLContext:
    """What connections begin with: the files as they are now.

    Raises:
        ValueError: one of them cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # whose cost is ours
    context.set_alpn_protocols(["http/1.1"])
    cert, key = os.fspath(model.cert_file or ""), os.fspath(model.key_file or "")
    for path in (cert, key):
        _check_readable(path)
    try:
        # Without a word OpenSSL would ask the terminal for that of an encrypted key.
        context.load_cert_chain(cert, key, password=lambda: "")
    except (ssl.SSLError, OSError) as error:
        raise ValueError(f"{cert} and {key}: {_why(error)}") from None
    if model.client_ca_file:
        _check_readable(model.client_ca_file)
        try:
            context.load_verify_locations(model.client_ca_file)
        except (ssl.SSLError, OSError) as error:
            raise ValueError(f"{model.client_ca_file}: {_why(error)}") from None
        context.verify_mode = ssl.CERT_REQUIRED if model.client_required else ssl.CERT_OPTIONAL
    return context


def _expires(model: TlsSettings) -> float | None:
    try:
        return expires_at(Path(model.cert_file or "").read_bytes())
    except OSError:
        return None


def _check_readable(path: str) -> None:
    try:
        open_file(path, waits=False).close()  # it is read twice, so it is no pipe at start either
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def _why(error: Exception) -> str:
    reason = getattr(error, "reason", None) or ""
    return {
        "KEY_VALUES_MISMATCH": "they do not belong together",
        "BAD_DECRYPT": "the key is encrypted; the proxy cannot ask for its password",
        "BAD_PASSWORD_READ": "the key is encrypted; the proxy cannot ask for its password",
        "NO_CERTIFICATE_OR_CRL_FOUND": "there is no certificate (PEM) in it",
    }.get(reason) or f"no certificate and key in PEM ({reason or type(error).__name__})"


def check_exposed(
    listeners: tuple[Listener, ...],
    *,
    model: SettingsModel,
    open_door: bool,
    callers: Roster,
    report: Report,
) -> None:
    """What listeners that other machines can reach have to have."""
    exposed = [one for one in listeners if not one.local]
    if not exposed:
        return
    reach = f"{exposed[0]} can be reached from other machines, and "
    if open_door:
        report.problem(
            "listen",
            reach + "anybody may call",
            hint="Listen on 127.0.0.1, or close the door: callers.anonymous = false",
        )
    elif all(one.here_only for one in callers.callers):  # or there is none
        what = "callers are known by uid alone" if callers.callers else "no caller is configured"
        report.problem("listen", reach + what, hint="Add one: nomba-proxy caller add NAME")
    plain = [one for one in exposed if not one.tls]
    if plain and not model.insecure_plain_http:
        report.problem(
            "listen",
            f"{plain[0]} can be reached from other machines, and keys would travel in clear text",
            hint=f"Write https://{plain[0]} (tls.cert_file), put TLS in front and listen on "
            "127.0.0.1, or say that the network is private: insecure_plain_http = true",
        )
