"""What follows from what a store knows of a session: plain functions."""

from proxy.core.session import Held, Token
from proxy.doctor.step import Step, bad, good

_OTHER_SECRET = "another client secret"  # noqa: S105 - words of a message


def living(held: Held, *, now: float) -> Token | None:
    """The token in a store, if it lives."""
    token = held.token
    return None if token is None or token.lifetime.dead(now=now) else token


def of_held(held: Held, *, where: str, now: float) -> Step:
    """What lies in a store that can be used.

    Args:
        held: it.
        where: the store.
        now: of the clock that runs during sleep.
    """
    if held.stopped:
        return bad(
            "store",
            f"{where}: an operator has stopped the session there (nomba-proxy token revoke --stop)",
            "When it is safe again: start the proxy, and then nomba-proxy token renew",
        )
    if token := living(held, now=now):
        left = token.lifetime.dies_at - now
        return good(
            "store",
            f"{where}: a living session, generation {token.generation}, for {left:.0f} s more",
        )
    last = f", the last was generation {held.generation}" if held.generation else ""
    return good("store", f"{where}: can be used; no living session in it{last}")


def of_store_problem(where: str, *, problem: str) -> Step:
    """A store that cannot be used, or read."""
    if _OTHER_SECRET in problem:
        advice = (
            "Whoever wrote it has another client secret: give all proxies that share the session the "
            "same one. If the old one is gone for good, remove that file."
        )
    elif where.startswith("file:"):
        advice = (
            "Run the doctor, and the proxy, as the user that the folder belongs to; see that its disk "
            "is not full and the folder can be written."
        )
    else:
        advice = (
            "Check that the server runs and can be reached from here, and its password "
            "(store_password_file), user and TLS (valkeys://, store_ca_file)."
        )
    return bad("store", problem if where in problem else f"{where}: {problem}", advice)


def why_no_login(held: Held | None, *, now: float) -> str:
    """Why nobody may log in beside what a store knows; "" if somebody may.

    Args:
        held: what it knows; None if nobody can tell.
        now: of the clock that runs during sleep.
    """
    if held is None:
        return "the store cannot be asked, and a session may live that a login would end"
    if held.stopped:
        return "an operator has stopped the session"
    if living(held, now=now) is not None:
        return "a living session is in the store, and a login would end it for whoever uses it"
    return ""
