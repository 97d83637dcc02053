"""What a proxy that runs says of its sessions may be another version's: whether it can be read."""

from collections.abc import Mapping

_Kinds = tuple[type, ...]
_NUMBER: _Kinds = (int, float)
# As `tokens/told.py` names them; what is read of an answer to `GET /token`, and no more.
_FIELDS: Mapping[str, _Kinds] = {
    "upstreams": (list,),
    "state": (str,),
    "token": (str,),
    "generation": (int,),
    "expires_in": _NUMBER,
    "renews_in": _NUMBER,
    "renewing": (bool,),
    "failures": (int,),
    "last_error": (str,),
    "retry_in": _NUMBER,
    "store": (str,),
    "secret_pending": (bool,),
    "secret_retry_in": _NUMBER,
}
# Every version has had one of these; nothing else that answers `GET /token` is likely to.
_KNOWN = frozenset({"upstreams", "state", "generation"})


def is_of_a_proxy(every: Mapping[str, object]) -> bool:
    """Whether an answer to `GET /token` is that of a proxy, of whatever version."""
    return any(isinstance(one, dict) and _KNOWN & set(one) for one in every.values())


def not_said(every: Mapping[str, object]) -> str:
    """What an answer to `GET /token` does not say, or says in another way; "" if all is there.

    Args:
        every: the answer, by session.
    """
    missing = dict.fromkeys(
        name
        for one in every.values()
        for name, kinds in _FIELDS.items()
        if not (isinstance(one, dict) and _is_one(one.get(name), kinds))
    )
    return ", ".join(missing)


def _is_one(value: object, kinds: _Kinds) -> bool:
    if isinstance(value, list):
        return list in kinds and bool(value) and all(isinstance(one, str) for one in value)
    return isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds)
