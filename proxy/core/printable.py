"""What others wrote, for a terminal that does not act on it."""


def printable(text: str, *, lines: bool = False) -> str:
    r"""A text in which nothing moves a cursor, changes a colour or turns the direction of reading.

    Whatever is not printable stands there as `\u001b`: C0, DEL and C1 (ECMA-48), which begin
    commands; overrides and marks of direction (UAX 9), which show a text in another order than it
    has; separators of lines other than a newline; halves of surrogates, which cannot be written.
    In JSON that is ASCII otherwise this is valid, and says the same.

    Args:
        text: by whomever.
        lines: whether newlines are meant, and stay.
    """
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or (lines and one == "\n") else _escaped(ord(one)) for one in text
    )


def _escaped(code: int) -> str:
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
