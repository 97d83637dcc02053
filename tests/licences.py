"""The licences of what the proxy needs when it runs, extras included; `make licences` writes docs/licences.md.

What a package says of itself is taken: its licence expression (PEP 639), else its field, else its
classifiers. Only licences that let everybody use the proxy as they like are let in.
"""

import re
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/licences.md"
ALLOWED = {
    *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MIT-0", "MPL-2.0"),
    *("PSF-2.0", "Unlicense", "Zlib"),
}
# What packages write that have no expression yet.
NAMES = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
# Needed by other versions of Python only; looked up by hand.
ELSEWHERE = {"async-timeout": "Apache-2.0"}

_HEAD = """# Licences

What the proxy needs when it runs, extras included, and under which licence each package says it comes. Written by
`make licences` from `requirements/run.txt` and what is installed; a test holds it, and refuses any licence that asks more than
to be named.

| package | version | licence |
| --- | --- | --- |
"""


class Unknown(Exception):
    """A licence that nobody has agreed to; the text names it."""


def pinned() -> dict[str, str]:
    """Names and versions in the lock."""
    text = (ROOT / "requirements/run.txt").read_text()
    return dict(re.findall(r"(?m)^([a-z][\w.-]*)(?:\[[^]]*\])?==([\w.]+)", text))


def licence_of(said: metadata.PackageMetadata) -> str:
    """A licence expression, from what a package says.

    Raises:
        Unknown: it says nothing, or nothing that was agreed to.
    """
    classifiers = [one for one in said.get_all("Classifier") or [] if one.startswith("License ::")]
    fields = [(said.get_all(name) or [""])[0] for name in ("License-Expression", "License")]
    fields.append(" OR ".join(NAMES.get(one.rpartition(" :: ")[2], one) for one in classifiers))
    text = next((one for one in fields if one), "")
    expression = NAMES.get(text, text)
    words = re.split(r"\s+(?:AND|OR)\s+|[()]", expression)
    wrong = [one.strip() for one in words if one.strip() and one.strip() not in ALLOWED]
    if wrong or not expression:
        raise Unknown(f"{said['Name']}: {expression[:80] or 'says nothing'}")
    return expression


def page() -> str:
    """The page, of what is installed here.

    Raises:
        Unknown: as `licence_of`.
    """
    rows = []
    for name, version in sorted(pinned().items()):
        licence = ELSEWHERE.get(name) or licence_of(metadata.metadata(name))
        rows.append(f"| {name} | {version} | {licence} |\n")
    return _HEAD + "".join(rows)


if __name__ == "__main__":
    try:
        PAGE.write_text(page())
    except Unknown as unknown:
        sys.exit(f"licences: {unknown}: not among {', '.join(sorted(ALLOWED))}")
