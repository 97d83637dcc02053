"""What an exchange says to who knows Nomba, in plain words: each from the fact sheet."""

from collections.abc import Iterator
from typing import Any

from proxy.inspector.exit import Message, Shown

_MONEY_GONE = (
    "Nobody knows whether this was carried out. Before it is repeated, ask for its state by its own "
    "reference: GET /v1/transactions/accounts/single?merchantTxRef=… (or orderReference=…)."
)


def hints(shown: Shown, *, environment: str) -> list[str]:
    """What there is to say, the most important first.

    Args:
        shown: the exchange.
        environment: of its upstream: `production`, `sandbox`, `simulator` or `other`.
    """
    return list(_hints(shown, environment))


def _hints(shown: Shown, environment: str) -> Iterator[str]:
    row = shown.row
    replies = [one.reply for one in shown.attempts if one.reply is not None]
    last = replies[-1] if replies else None
    if row["outcome"] == "unknown" and row["kind"] != "read":
        yield _MONEY_GONE
    if row["status"] == 499:
        got = f" The upstream's answer was {last.start.partition(' ')[2]}." if last else ""
        yield f"The caller hung up or was cut off; what it got is not the whole reply.{got}"
    elif row["error"] and row["detail"]:
        yield f"The proxy answered this itself ({row['error']}): {row['detail']}"
    statuses = [_status(one) for one in replies]
    if len(statuses) > 1 and statuses[0] == 401 and statuses[-1] != 401:
        yield (
            "Nomba refused the first token with a 401; the proxy renewed it and sent the same bytes "
            "once more. If this happens often, somebody else logs in with the same credentials: "
            "Nomba keeps one session, and each login ends the one before."
        )
    if statuses[-1:] == [401]:
        text = "Nomba refuses a fresh token" if len(statuses) > 1 else "Nomba refused the token"
        yield (
            f"{text}: the accountId may be wrong or missing, or keys and host belong to different "
            f"environments (tokens of sandbox and production are not interchangeable; "
            f"this is {environment})."
        )
    if last is not None and not row["error"]:
        yield from _of_reply(last, row)
    accounts = {value for key, value in _headers(shown.request) if key.lower() == "accountid"}
    sent = {value for one in shown.attempts for key, value in one.headers if key == "accountId"}
    if accounts and sent and accounts != sent:
        yield (
            "The caller's accountId was replaced: the header is always the parent account; "
            "sub-accounts go into the path, the query or the body."
        )


def _of_reply(last: Message, row: dict[str, Any]) -> Iterator[str]:
    status, text = _status(last), last.body.text or ""
    if status == 403 and ("html" in last.body.type or text.lstrip()[:1] == "<"):
        yield (
            "403 with a page instead of JSON comes from the edge in front of Nomba: the address you "
            "call from is probably not on the IP allowlist (up to three static IPv4 addresses; "
            "calls over IPv6 are refused as an unknown source)."
        )
    elif status == 403:
        yield (
            "403 is never about the token: not entitled to this product, the IP address is not "
            "allowlisted, or a sub-account stands in the accountId header."
        )
    if status == 404 and "single" in row["route"]:
        yield (
            "A requery may answer 404 for a second after the call and settle minutes later: "
            "ask again before you conclude anything."
        )
    if status == 429 or row["code"] == "429":
        yield (
            "Too many requests: Nomba announces 40 a second, and 5 transfers a minute to one "
            "recipient. See X-Rate-Limit-Remaining."
        )
    if status in {400, 500} and "JWT expired" in text:
        yield (
            "“JWT expired” in a 400 or 500 is an expired token in disguise. It does not prove that "
            "nothing was done, so only reads are sent again."
        )
    if status < 300 and row["code"] not in {"", "00", "200", "201"}:
        yield (
            f"HTTP says {status}, but the envelope's code is {row['code']}: this failed. Only “code” "
            "is dependable."
        )
    elif row["state"] == "in_flight":
        yield (
            "201 means accepted, and the money is still on its way. Requery by reference, or wait "
            "for the webhook."
        )
    elif status < 300 and '"status":false' in text.replace(" ", "")[:4096]:
        yield "“status: false” also stands in successful replies: only “code” is dependable."


def _status(message: Message) -> int:
    found = message.start.split(" ")[1]
    return int(found) if found.isdigit() else 0


def _headers(message: Message | None) -> list[tuple[str, str]]:
    return message.headers if message is not None else []
