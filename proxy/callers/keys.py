"""A caller's key, as a request carries it."""

import base64
import binascii
import re

from proxy.core.caller import KEY_PREFIX

_IS_KEY = re.compile(rb"(?i:bearer)?\s*" + KEY_PREFIX.encode())


def is_key(authorization: bytes) -> bool:
    """Whether an `Authorization` holds a key: many libraries know no other place for one."""
    return _IS_KEY.match(authorization) is not None


def read_key(value: bytes) -> tuple[str, str]:
    """Name and secret in a key, as it is or behind a scheme; empty texts if it is none."""
    scheme, _, rest = value.strip().partition(b" ")
    if scheme.lower() == b"basic":
        return read_basic(rest.strip())
    text = (rest if scheme.lower() == b"bearer" else value).strip().decode("latin-1")
    name = text.removeprefix(KEY_PREFIX).partition("_")[0] if text.startswith(KEY_PREFIX) else ""
    return name, text


def read_basic(text: bytes) -> tuple[str, str]:
    """Name and secret in HTTP Basic (RFC 7617); empty texts if it is none."""
    try:
        name, _, secret = base64.b64decode(text, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return "", ""
    return name, secret
