"""The command line: a verb, and what it needs.

Exit codes: 0 ok, 1 failure, 2 usage (a wrong flag, or settings that cannot be used). A verb brings
what it needs when it is run: help and a version are there at once.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from proxy import __version__
from proxy.cli.parser import SIMULATE, make_parser

if TYPE_CHECKING:
    from proxy.settings import Settings


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: arguments without the program's name; the process's by default.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a path need not be UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if arguments.verb == "version":
        print(f"nomba-proxy {__version__}")
        return
    if arguments.verb == "completion":
        from proxy.cli.completion import completion

        sys.exit(completion(parser, arguments.shell))
    flags = _flags(parser, arguments)
    # What is wrong with the settings is for the doctor to say.
    settings = None if arguments.verb == "doctor" else _load(arguments, flags)
    try:
        code = _doctor(arguments, flags) if settings is None else _run(arguments, settings)
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except OSError as error:
        # Whoever read our output left, as `head` does, or its disk is full; keep the
        # interpreter from complaining when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            print(f"nomba-proxy: {error.strerror or error}", file=sys.stderr)
        code = 1
    sys.exit(code)


def _load(arguments: argparse.Namespace, flags: dict[str, str | list[str]]) -> "Settings":
    """The settings; whoever has others that cannot be used is told so, and it ends here."""
    from proxy.settings import SettingsError, environment, load

    try:
        return load(
            environ=environment(),
            config=arguments.config,
            flags=flags,
            credentials=arguments.verb in {"serve", "check"},
            listeners=arguments.verb in {"serve", "check", "token"},
            callers=arguments.verb in {"serve", "check"},
        )
    except SettingsError as error:
        print("nomba-proxy: these settings cannot be used:", file=sys.stderr)
        for problem in error.problems:
            print(f"  - {problem}", file=sys.stderr)
        sys.exit(2)


def _doctor(arguments: argparse.Namespace, flags: dict[str, str | list[str]]) -> int:
    from proxy.cli.doctor import doctor
    from proxy.settings import environment

    return doctor(arguments, environ=environment(), flags=flags)


def _run(arguments: argparse.Namespace, settings: "Settings") -> int:
    if arguments.verb == "serve":
        from proxy.cli.serve import serve

        return serve(settings)
    if arguments.verb == "simulate":
        from proxy.cli.simulate import simulate

        return simulate(settings)
    if arguments.verb == "check":
        from proxy.cli.check import check

        return check(settings, show=arguments.show, as_json=arguments.json)
    if arguments.verb == "caller":
        from proxy.cli.caller import caller

        return caller(settings, arguments)
    if arguments.verb == "certs":
        from proxy.cli.certs import certs

        return certs(settings, arguments)
    if arguments.verb == "tail":
        from proxy.cli.tail import tail
        from proxy.settings import environment

        plain = not sys.stdout.isatty() or bool(environment().get("NO_COLOR"))
        return tail(settings, arguments, plain=plain)
    if arguments.verb == "export":
        from proxy.cli.export import export

        return export(settings, arguments)
    from proxy.cli.token import token

    return token(
        settings,
        action=arguments.action,
        upstream=arguments.upstream,
        stop=getattr(arguments, "stop", False),
        as_json=arguments.json,
    )


def _flags(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace
) -> dict[str, str | list[str]]:
    flags: dict[str, str | list[str]] = {}
    for pair in arguments.set:
        key, equals, value = pair.partition("=")
        if not equals:
            parser.error(f"--set wants KEY=VALUE, not {pair!r}")
        flags[f"upstream.0.{key[9:]}" if key.startswith("upstream.") else key] = value
    if arguments.verb == "simulate":
        flags["simulate"] = "true"
    for key, name in (
        ("listen", "listen"),
        ("admin.listen", "admin_listen"),
        ("workers", "workers"),
        ("simulate", "simulate"),
        ("inspect", "inspect"),
        ("inspect_listen", "inspect_listen"),
        *((key, key) for _, key, _, _ in SIMULATE),
    ):
        value = getattr(arguments, name, None)
        if value not in (None, []):
            flags[key] = ",".join(value) if name == "listen" else value
    return flags
