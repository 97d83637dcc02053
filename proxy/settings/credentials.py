"""Credentials: from the environment, from files it names, or from `$CREDENTIALS_DIRECTORY`.

Never from a flag, and the secret never from the settings file itself.
"""

import io
import ssl
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from proxy.core.secret import ADMIN, SIGNING, Secret
from proxy.settings.files import open_file
from proxy.settings.model import variable
from proxy.settings.sources import Report

# Names that integrators already have (facts, section 5), by key of `[[upstream]]`.
CREDENTIAL_VARIABLES = {
    "client_id": ("NOMBA_CLIENT_ID",),
    "client_secret": ("NOMBA_CLIENT_SECRET", "NOMBA_PRIVATE_KEY"),
    "client_secret_next": ("NOMBA_CLIENT_SECRET_NEXT",),
    "account_id": ("NOMBA_ACCOUNT_ID", "NOMBA_PARENT_ACCOUNT_ID"),
}


def any_credentials(environ: Mapping[str, str]) -> bool:
    """Whether a client id or secret is given outside the settings file, usable or not.

    An account id alone opens nothing: the simulator can stand in for it.
    """
    directory = environ.get("CREDENTIALS_DIRECTORY")
    return any(
        environ.get(name)
        or environ.get(f"{name}_FILE")
        or (directory and _exists(Path(directory) / name))
        for key in ("client_id", "client_secret")
        for name in CREDENTIAL_VARIABLES[key]
    )


def read_credentials(
    environ: Mapping[str, str], *, report: Report, only: Iterable[str] = CREDENTIAL_VARIABLES
) -> dict[str, tuple[str, str]]:
    """Value and origin of each credential that is given outside the settings file.

    Args:
        environ: the environment.
        report: takes problems and warnings.
        only: the keys to look for.
    """
    found: dict[str, tuple[str, str]] = {}
    for key in only:
        names = CREDENTIAL_VARIABLES[key]
        given = [one for one in (_one(name, environ, report=report) for name in names) if one]
        if len({value for value, _ in given}) > 1:
            report.problem(
                names[0],
                f"differs between {' and '.join(origin for _, origin in given)}",
                hint="Set one of them.",
                origin="environment",
            )
        if given:
            found[key] = given[0]
    return found


_MIN_SIGNING_KEY = 32


def read_own_secret(
    key: str, file: str | None, *, environ: Mapping[str, str], report: Report
) -> str | None:
    """A secret of the proxy's own, if it is given.

    Args:
        key: its name among the settings, which itself is no setting; `key` + `_file` is one.
        file: what that says.
        environ: the environment.
        report: takes problems, and where it came from.
    """
    name = variable(key)
    rest = {other: value for other, value in environ.items() if other != f"{name}_FILE"}
    given = _one(name, rest, report=report)
    if given is not None and file and not given[1].startswith("credential"):
        report.problem(name, f"is set together with {key}_file", hint="Set one.", origin=given[1])
    if given is None and file:
        origin = report.origins.get(f"{key}_file", "default")
        text = read_secret_file(file, key=f"{key}_file", origin=origin, report=report)
        given = None if text is None else (text, f"file {file}")
    if given is None:
        return None
    value, report.origins[key] = given
    return value


def read_signing_key(
    file: str | None, *, environ: Mapping[str, str], report: Report
) -> Secret | None:
    """The key that phantom tokens are signed with, if one is given.

    Args:
        file: `callers.signing_key_file`.
        environ: the environment.
        report: takes problems, and where it came from.
    """
    value = read_own_secret("callers.signing_key", file, environ=environ, report=report)
    if value is None:
        return None
    if len(value) < _MIN_SIGNING_KEY:
        report.problem(
            "callers.signing_key",
            f"is shorter than {_MIN_SIGNING_KEY} characters",
            hint="Make one: python3 -c 'import secrets; print(secrets.token_urlsafe(48))'",
        )
    return Secret(value, origin=SIGNING)


_ADMIN_TOKEN = 32  # characters
_FILE = "It is the path of a file with the secret in it, never the secret itself."
# What need not be there yet.
_LATER = frozenset({"NOMBA_CLIENT_SECRET_NEXT", "client_secret_next_file"})


def read_admin_token(
    path: str | None, *, environ: Mapping[str, str], report: Report
) -> Secret | None:
    """The token that opens the admin listener, if one is given."""
    name, key = "NOMBA_PROXY_ADMIN_TOKEN", "admin.token_file"
    text = environ.get(name)
    if text and path:
        report.problem(name, f"is set together with {key}", hint="Set one.", origin="environment")
    if not text and path:
        text = read_secret_file(
            path, key=key, origin=report.origins.get(key, "default"), report=report
        )
    if not text:
        return None
    if len(text) < _ADMIN_TOKEN or not text.isascii() or not text.isprintable() or " " in text:
        report.problem(
            key,
            f"is no token: at least {_ADMIN_TOKEN} characters of ASCII without spaces",
            hint="openssl rand -hex 32",
        )
        return None
    return Secret(text, origin=ADMIN)


def _one(name: str, environ: Mapping[str, str], *, report: Report) -> tuple[str, str] | None:
    plain, file = environ.get(name), environ.get(f"{name}_FILE")
    directory = environ.get("CREDENTIALS_DIRECTORY")
    if plain and file:
        report.problem(
            name, f"is set together with {name}_FILE", hint="Set one.", origin="environment"
        )
    if plain:
        _look_at_the_edges(plain, where=name, report=report)
        return plain, f"environment {name}"
    if file:
        text = read_secret_file(
            file, key=f"{name}_FILE", origin=f"environment {name}_FILE", report=report
        )
        return None if text is None else (text, f"file {file}")
    if directory and _exists(Path(directory) / name):
        path = str(Path(directory) / name)
        text = read_secret_file(path, key=name, origin="$CREDENTIALS_DIRECTORY", report=report)
        return None if text is None else (text, f"credential {name}")
    return None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, a folder closed to us, a NUL
        return False


def _is_path(text: str) -> bool:
    """Whether it leads to a folder that is there: else it may be a secret in a file's place."""
    parts = Path(text).parts
    return len(parts) > 1 and _exists(Path(*parts[: 2 if Path(text).is_absolute() else 1]))


def read_secret_file(path: str, *, key: str, origin: str, report: Report) -> str | None:
    """The content of a file that holds one secret, without exactly one trailing newline.

    The file of a next secret may be missing or empty: then there is none yet.

    Args:
        path: of the file.
        key: the setting that names it.
        origin: where that setting came from.
        report: takes problems, and a warning if every user can read the file.
    """
    later = key.rpartition(".")[2].removesuffix("_FILE") in _LATER
    try:
        with io.TextIOWrapper(open_file(path, waits=not report.again), "utf-8") as file:
            text = file.read()
        mode = Path(path).stat().st_mode
    except OSError as error:
        if not (later and isinstance(error, FileNotFoundError)):
            shown, hint = (path, "") if _is_path(path) else ("what it names", _FILE)
            text = f"{shown} cannot be read: {error.strerror}"
            report.problem(key, text, hint=hint, origin=origin)
        return None
    except UnicodeDecodeError:
        report.problem(key, f"{path} cannot be read: it is no UTF-8 text", origin=origin)
        return None
    except ValueError:  # a NUL in it
        report.problem(key, "is no file name", hint=_FILE, origin=origin)
        return None
    if mode & stat.S_IROTH:
        report.warnings.append(f"{path} ({key}) can be read by every user: chmod 600 {path}")
    text = text.removesuffix("\n")
    if not text:
        if not later:
            report.problem(key, f"{path} is empty", origin=origin)
        return None
    _look_at_the_edges(text, where=f"{path} ({key})", report=report)
    return text


def _look_at_the_edges(text: str, *, where: str, report: Report) -> None:
    if text != text.strip():
        report.warnings.append(f"the value in {where} begins or ends with white space")


def check_ca_file(key: str, path: str | None, *, report: Report) -> None:
    """Check that a file, if one is named, holds certificates to check others with."""
    if path is None:
        return
    try:
        open_file(path, waits=False).close()  # it is read again, so it is no pipe at start either
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:  # an OSError and a ValueError, so it comes first
        report.problem(key, f"{path} holds no certificates in PEM format")
    except OSError as error:
        report.problem(key, f"{path} cannot be read: {error.strerror}")
    except ValueError:  # a NUL in it
        report.problem(key, f"{path!r} is no file name")
