"""`nomba-proxy export`: captured exchanges into a file."""

import argparse
import json
import os
import secrets
import sys
from pathlib import Path

from proxy.cli.inspector import Asker, Gone, NoInspector, filters, read
from proxy.core.printable import printable
from proxy.settings import Settings


def export(settings: Settings, arguments: argparse.Namespace) -> int:
    """Write an HTTP Archive; the exit code."""
    path = "/api/har" if arguments.id is None else f"/api/exchanges/{arguments.id}/har"
    if arguments.id is not None and filters(arguments):
        print("nomba-proxy: --id is one exchange: leave the filters out", file=sys.stderr)
        return 2
    try:
        asker = Asker(settings, url=arguments.url)
        found = read(asker.open(path, filters(arguments), headers={}, timeout=120))
    except (NoInspector, Gone) as error:
        print(f"nomba-proxy: {printable(str(error), lines=True)}", file=sys.stderr)
        return 1
    text = printable(json.dumps(found, indent=1), lines=True)  # it may go to a terminal
    if arguments.har == "-":
        print(text)
        return 0
    target = Path(arguments.har)
    try:
        _write(target, text)
    except OSError as error:
        print(f"nomba-proxy: {target}: {error.strerror}", file=sys.stderr)
        return 1
    count = len(found["log"]["entries"])
    print(f"{count} exchange{'' if count == 1 else 's'} in {target}", file=sys.stderr)
    return 0


def _write(target: Path, text: str) -> None:
    """All of it or nothing, for its owner only; into a device or a pipe as it comes."""
    target = target.resolve()
    if target.exists() and not target.is_file():
        with target.open("w", encoding="utf-8") as file:
            file.write(text)
        return
    fresh = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        fresh.replace(target)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
