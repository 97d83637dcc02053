"""A validation error in words for people."""

import difflib
import re
from collections.abc import Iterable

from proxy.settings.model import ALLOWED, CallerEntry, SettingsModel, keys


def explain(
    loc: tuple[int | str, ...],
    *,
    kind: str,
    message: str,
    top: Iterable[str] = SettingsModel.model_fields,
) -> tuple[str, str, str]:
    """Key, text and hint of a problem that validation found.

    Args:
        loc: where, as pydantic says it.
        kind: its name of the error.
        message: its words.
        top: the keys and sections that the file can have.
    """
    # The branches of a union are no part of the key.
    parts = [str(one) for one in loc if not str(one).startswith(("literal", "bool"))]
    key = ".".join(parts)
    generic = re.sub(r"^(upstream|caller)\.\d+\.", r"\1.0.", key)
    if kind == "extra_forbidden" and generic in {"client_secret", "upstream.0.client_secret"}:
        hint = "Put it into a file of its own and name that as client_secret_file."
        return key, "secrets do not belong into the settings file", hint
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(generic, _siblings(generic, top), n=1)
        hint = f"Did you mean {near[0].replace('.0.', '.')}?" if near else ""
        return key, "is no setting", hint
    if kind == "missing":
        return key, "is not set", ""
    if kind in {"tuple_type", "model_type", "dict_type"}:
        several = parts[0] in {"upstream", "caller"}
        brackets = f"[[{parts[0]}]]" if several else f"[{parts[0]}]"
        if len(parts) == (2 if several and parts[-1].isdigit() else 1):
            hint = "Did you mean [[caller]]?" if parts[0] == "callers" else ""
            return key, f"must be a section: {brackets}", hint
        return key, "must be a list", ""
    allowed = ALLOWED.get(generic)
    if kind in {"float_parsing", "int_parsing"} and not allowed:
        return key, "must be a number", "Without a unit; times are seconds."
    return key, f"must be {allowed}" if allowed else message[:1].lower() + message[1:], ""


def _siblings(generic: str, top: Iterable[str]) -> list[str]:
    every = [*keys(), *(f"caller.0.{one}" for one in CallerEntry.model_fields)]
    if "." not in generic:
        return [one for one in top if one != generic]
    return [one for one in every if one.count(".") == generic.count(".")]
