"""What follows from the settings as they were read: plain functions."""

import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from proxy.core.secret import mask
from proxy.doctor.step import Step, bad, good
from proxy.settings import Problem

_OF_SECRET = re.compile(r"CLIENT_SECRET|PRIVATE_KEY|client_secret")
_WHERE = "Set or correct it; nomba-proxy check --show prints every value in force and where it came from."
_FILE = (
    "Put the client secret, and nothing else, into that file, and let the user that the proxy runs "
    "as read it: chmod 600, chown."
)
_UNSET = (
    "Write the client secret into a file that only the user of the proxy can read (chmod 600), and "
    "set NOMBA_CLIENT_SECRET_FILE to it."
)
_REWRITE = "Write it without: printf %s 'THE SECRET' > {}"


@dataclass(frozen=True, slots=True)
class SecretSeen:
    """A client secret from outside: how it lies there, and never what it is.

    Attributes:
        origin: where it came from, in words.
        path: the file it is in, or "".
        mode: permissions of that file; None if there is none.
        edges: whether it begins or ends with white space.
        lines: whether it has a line break inside.
        quoted: whether it stands in quotation marks.
    """

    origin: str
    path: str = ""
    mode: int | None = None
    edges: bool = False
    lines: bool = False
    quoted: bool = False


def of_settings(problems: Iterable[Problem], *, warnings: Iterable[str]) -> Iterator[Step]:
    """A step for each problem; if there is none, one with the warnings."""
    found = [one for one in problems if not _OF_SECRET.search(one.key)]
    for one in found:
        origin = f" ({one.origin})" if one.origin else ""
        yield bad("settings", f"{one.key}{origin}: {one.text}", one.hint or _WHERE)
    if not found:
        # Those of the secrets are told with the secrets.
        yield good(
            "settings", "valid", "\n".join(one for one in warnings if not _OF_SECRET.search(one))
        )


def of_secret_problems(problems: Iterable[Problem]) -> Iterator[Step]:
    """A step for each client secret that could not be had."""
    for one in problems:
        if _OF_SECRET.search(one.key):
            advice = one.hint or (_FILE if one.origin else _UNSET)
            origin = f" ({one.origin})" if one.origin else ""
            yield bad("secret", f"{one.key}{origin}: {one.text}", advice)


def of_secret(seen: SecretSeen) -> Step:
    """Whether a client secret can be what Nomba gave out."""
    if seen.edges or seen.lines:
        what = "begins or ends with white space" if seen.edges else "has a line break inside"
        advice = "Nomba's secrets have no white space. " + (
            _REWRITE.format(seen.path) if seen.path else f"Set {_variable(seen.origin)} without."
        )
        return bad("secret", f"{seen.origin}: it {what}", advice)
    advices = []
    if seen.mode is not None and seen.mode & stat.S_IROTH:
        advices.append(f"Every user of this machine can read it: chmod 600 {seen.path}")
    if seen.quoted:
        advices.append("It stands in quotation marks, which are sent as part of it: take them away")
    mode = "" if seen.mode is None else f", mode {seen.mode:04o}"
    return good("secret", f"{seen.origin}{mode}", "\n".join(advices))


def _variable(origin: str) -> str:
    return origin.partition(" ")[2] or "it"


def of_account(account: str, *, sub_account: str) -> Iterator[Step]:
    """A sub-account where the parent account belongs (facts, section 3).

    Args:
        account: that is sent as `accountId`.
        sub_account: `NOMBA_SUB_ACCOUNT_ID`, or "".
    """
    if account and account.lower() == sub_account.lower():
        yield bad(
            "account",
            f"account_id is {mask(account)}, which NOMBA_SUB_ACCOUNT_ID says is a sub-account",
            "Set NOMBA_ACCOUNT_ID to the parent account; sub-accounts go into the path, the query "
            "or the body of a request.",
        )
