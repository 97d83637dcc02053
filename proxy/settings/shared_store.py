"""The server that replicas share: read and check what `store` and the keys beside it say."""

import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from ipaddress import IPv6Address
from urllib.parse import unquote

from proxy.core.secret import STORE, Secret
from proxy.settings.addresses import parse_host_name
from proxy.settings.credentials import check_ca_file, read_own_secret
from proxy.settings.effective import SharedStore
from proxy.settings.model import SettingsModel
from proxy.settings.sources import Report

SHARED = {"valkey": False, "redis": False, "valkeys": True, "rediss": True}  # whether by TLS
_ADDRESS = re.compile(
    r"(?P<kind>\w+)://(?:(?P<user>[^:@/?#]*)(?P<password>:[^@/?#]*)?@)?"
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^:@/?#\[\]]+))(?::(?P<port>\d{1,5}))?"
    r"(?:/(?P<database>\d{0,5}))?"
)


def read_shared_store(
    model: SettingsModel, *, environ: Mapping[str, str], report: Report
) -> SharedStore | None:
    """The server that sessions are kept in, if `store` names one."""
    text = model.store or ""
    password = read_own_secret(
        "store_password", model.store_password_file, environ=environ, report=report
    )
    kind = text.partition(":")[0]
    if not is_shared(model):
        for key in ("store_password_file", "store_ca_file"):
            if getattr(model, key):
                report.problem(key, "is for a store on a server, such as store = valkey://HOST")
        return None
    check_ca_file("store_ca_file", model.store_ca_file, report=report)
    found = _ADDRESS.fullmatch(text)
    try:
        host = parse_host_name(found["host"]) if found and found["host"] else ""
        if found and found["v6"]:
            host = str(IPv6Address(found["v6"]))
    except ValueError:
        host = ""
    port = int((found and found["port"]) or 6379)
    if found is None or not host or not 0 < port < 65536:
        report.problem(
            "store",
            f"{masked(text)!r} is no address of a server",
            hint="Write valkey://HOST:PORT, valkeys:// for TLS, with USER@ before it if it has one.",
        )
        return None
    if found["password"] is not None:
        given = unquote(found["password"][1:])
        if not report.origins.get("store", "").startswith("environment"):
            report.problem(
                "store",
                "has a password in it",
                hint="Name a file in store_password_file, or set NOMBA_PROXY_STORE_PASSWORD.",
            )
        elif password is not None and password != given:
            report.problem(
                "store", "has another password in it than store_password", hint="Set one of them."
            )
        password = given or None
    tls = SHARED[kind]
    if model.store_ca_file and not tls:
        report.problem(
            "store_ca_file", "is for a store that is reached by TLS", hint="store = valkeys://HOST"
        )
    return SharedStore(
        host,
        port,
        tls=tls,
        user=unquote(found["user"] or ""),
        password=None if password is None else Secret(password, origin=STORE),
        database=int(found["database"] or 0),
        ca_file=model.store_ca_file,
        reread=_reader(model.store_password_file, environ=environ)
        if report.origins.get("store_password", "").startswith(("file", "credential"))
        else None,
    )


def _reader(file: str | None, *, environ: Mapping[str, str]) -> Callable[[], Secret | None]:
    """What reads the password again, from wherever it came."""

    def read() -> Secret | None:
        text = read_own_secret("store_password", file, environ=environ, report=Report(again=True))
        return None if text is None else Secret(text, origin=STORE)

    return read


def is_shared(model: SettingsModel) -> bool:
    """Whether `store` speaks of a server, be it wrongly."""
    return (model.store or "").partition(":")[0] in SHARED


def check_shared_store(
    model: SettingsModel, *, simulate: bool, key: Secret | None, report: Report
) -> None:
    """Check what replicas that share a session need."""
    token = model.token
    if find_spec("redis") is None:
        report.problem(
            "store",
            "needs the redis package, which is not installed",
            hint="pip install '.[valkey]' in the folder of its source; "
            "with its wheel alone: pip install './nomba_proxy-….whl[valkey]'",
        )
    if simulate:
        report.problem(
            "store",
            "is for replicas, and the built-in simulator is of this one alone",
            hint="Run nomba-proxy simulate by itself, and point every replica at it: NOMBA_BASE_URL.",
        )
    if key is None:
        report.problem(
            "callers.signing_key",
            "is not set, and replicas that share a session have to share it",
            hint="Give all the same, in callers.signing_key_file or NOMBA_PROXY_CALLERS_SIGNING_KEY: "
            "python3 -c 'import secrets; print(secrets.token_urlsafe(48))'",
        )
    if not token.wait_limit > token.call_timeout > token.lease:
        report.problem(
            "token.lease",
            f"{token.lease:g} s, token.call_timeout {token.call_timeout:g} s, "
            f"token.wait_limit {token.wait_limit:g} s",
            hint="lease < call_timeout < wait_limit: a lease is extended while its holder calls, and "
            "whoever waits has to see the call's end.",
        )


def masked(text: str) -> str:
    """A text without what may be a password in it."""
    return re.sub(r"^(\w*:?/*).*@", r"\1***@", text, flags=re.DOTALL)
