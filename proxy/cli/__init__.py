"""The command line: `serve`, `check`, `token`, `caller`, `tail`, `export`, `simulate`, `version`.

Exit codes: 0 ok, 1 failure, 2 usage (a wrong flag, or settings that cannot be used).
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence

from proxy import __version__
from proxy.cli.simulate import epilog
from proxy.core.caller import NAME
from proxy.settings import Settings, SettingsError, environment, load

_EPILOG = """\
settings: flag over environment over file over default; config/proxy.toml in the source
tree documents every key, and `nomba-proxy check --show` prints the effective ones.

credentials come from the environment, never from a flag:
  NOMBA_CLIENT_ID, NOMBA_CLIENT_SECRET (or NOMBA_PRIVATE_KEY), NOMBA_ACCOUNT_ID
  (or NOMBA_PARENT_ACCOUNT_ID); each also as …_FILE, or in $CREDENTIALS_DIRECTORY.
  NOMBA_ENVIRONMENT=production|sandbox or NOMBA_BASE_URL chooses where they are used.

exit codes: 0 ok, 1 failure, 2 usage or settings that cannot be used
"""


# Flags of `simulate`: name, key, placeholder, help.
_SIMULATE = (
    ("--listen", "simulator.listen", "ADDR", "where it listens (default 127.0.0.1:8090)"),
    (
        "--control-listen",
        "simulator.control_listen",
        "ADDR",
        "where its control API listens (default 127.0.0.1:8091)",
    ),
    ("--seed", "simulator.seed", "N", "the same seed, the same identifiers (default 1)"),
    ("--state", "simulator.state_file", "FILE", "keep the state in a file and go on from it"),
    ("--fault", "simulator.faults", "FAULT", "misbehave, see below (repeatable)"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: arguments without the program's name; the process's by default.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a path need not be UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.verb == "version":
        print(f"nomba-proxy {__version__}")
        return
    try:
        settings = load(
            environ=environment(),
            config=arguments.config,
            flags=_flags(parser, arguments),
            credentials=arguments.verb in {"serve", "check"},
            listeners=arguments.verb in {"serve", "check", "token"},
            callers=arguments.verb in {"serve", "check"},
        )
    except SettingsError as error:
        print("nomba-proxy: these settings cannot be used:", file=sys.stderr)
        for problem in error.problems:
            print(f"  - {problem}", file=sys.stderr)
        sys.exit(2)
    try:
        code = _run(arguments, settings)
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


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
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
    if arguments.verb == "tail":
        from proxy.cli.tail import tail

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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nomba-proxy",
        description="An authenticating reverse proxy for the Nomba payments API.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nomba-proxy {__version__}")
    general = argparse.ArgumentParser(add_help=False)
    general.add_argument(
        "--config", metavar="FILE", help="settings file (TOML) [NOMBA_PROXY_CONFIG]"
    )
    general.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="set any key of the settings file, e.g. --set log.level=debug (repeatable)",
    )
    common = argparse.ArgumentParser(add_help=False, parents=[general])
    common.add_argument(
        "--admin-listen",
        metavar="ADDR",
        help="admin listener, host:port [NOMBA_PROXY_ADMIN_LISTEN] (default 127.0.0.1:9091)",
    )
    serving = argparse.ArgumentParser(add_help=False, parents=[common])
    serving.add_argument(
        "--listen",
        metavar="ADDR",
        help="traffic listener, host:port [NOMBA_PROXY_LISTEN] (default 127.0.0.1:8080)",
    )
    serving.add_argument(
        "--workers",
        metavar="N",
        help="so many processes share the listener and the session [NOMBA_PROXY_WORKERS] (default 1)",
    )
    serving.add_argument(
        "--simulate",
        nargs="?",
        const="true",
        choices=("true", "false", "auto"),
        help="use the built-in simulator as the upstream; auto: only if no credentials are set",
    )
    serving.add_argument(
        "--inspect",
        nargs="?",
        const="true",
        choices=("true", "false", "auto"),
        help="open the inspector, a page that shows every request; auto (the default): only with "
        "the simulator",
    )
    serving.add_argument(
        "--inspect-listen",
        metavar="ADDR",
        help="inspector, host:port [NOMBA_PROXY_INSPECT_LISTEN] (default 127.0.0.1:4040)",
    )
    asking = argparse.ArgumentParser(add_help=False, parents=[common])
    asking.add_argument("--json", action="store_true", help="print JSON")

    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    raw = argparse.RawDescriptionHelpFormatter
    verbs.add_parser(
        "serve",
        parents=[serving],
        help="run the proxy",
        description="Run the proxy until SIGINT or SIGTERM; a second signal ends it at once.",
        epilog=_EPILOG,
        formatter_class=raw,
    )
    check = verbs.add_parser(
        "check", parents=[serving], help="validate the settings, start nothing"
    )
    check.add_argument("--show", action="store_true", help="print every setting and its origin")
    check.add_argument("--json", action="store_true", help="print JSON")
    token = verbs.add_parser("token", help="look at or change a running proxy's session")
    actions = token.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in (
        ("show", "state of the token; never the token itself"),
        ("renew", "get a newer token now; ends a stop"),
        ("revoke", "hold requests, revoke the token, issue a new one, go on"),
    ):
        action = actions.add_parser(name, parents=[asking], help=text, description=text)
        action.add_argument("--upstream", metavar="NAME", help="which, if there are several")
        if name == "revoke":
            action.add_argument(
                "--stop", action="store_true", help="stay without a token until `token renew`"
            )
    _add_caller(verbs, general)
    _add_watching(verbs, general)
    simulate = verbs.add_parser(
        "simulate",
        parents=[general],
        help="run the simulator alone: a Nomba to build against",
        description="Run a simulated Nomba until SIGINT or SIGTERM; no credentials needed.",
        epilog=epilog(),
        formatter_class=raw,
    )
    for flag, key, metavar, text in _SIMULATE:
        how = "append" if flag == "--fault" else "store"
        simulate.add_argument(flag, dest=key, metavar=metavar, help=text, action=how)
    verbs.add_parser("version", help="print the version")
    return parser


def _name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r}: up to 32 lower-case letters, digits and -, a letter first"
        )
    return text


def _add_caller(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]", general: argparse.ArgumentParser
) -> None:
    caller = verbs.add_parser("caller", help="give services keys and policies of their own")
    actions = caller.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, text: str, *, named: bool = True) -> argparse.ArgumentParser:
        made = actions.add_parser(name, parents=[general], help=text, description=text)
        if named:
            made.add_argument(
                "name", metavar="NAME", type=_name, help="lower-case letters, digits and -"
            )
        made.add_argument("--json", action="store_true", help="print JSON")
        return made

    add = action("add", "add a caller and print its key, once")
    add.add_argument("--role", choices=("full", "no-money", "read-only"), help="at most (full)")
    add.add_argument("--upstream", action="append", metavar="NAME", help="only this (repeatable)")
    add.add_argument(
        "--account", action="append", metavar="ID", help="only for this account (repeatable)"
    )
    add.add_argument(
        "--rule",
        action="append",
        metavar="RULE",
        help="e.g. 'allow GET /v1/transactions/**', 'allow family:checkout', 'deny class:money'; "
        "the first that fits decides, nothing else is allowed (repeatable)",
    )
    add.add_argument("--observe", action="store_true", help="only log what would be refused")
    add.add_argument("--rate", type=float, metavar="N", help="requests a second")
    add.add_argument("--burst", type=int, metavar="N", help="so many of them at once")
    add.add_argument("--concurrent", type=int, metavar="N", help="requests at a time")
    add.add_argument("--body-limit", metavar="SIZE", help="largest request body, e.g. 64KiB")
    add.add_argument("--expires", metavar="WHEN", help="30d, 2027-01-31, or a time with one")
    door = add.add_mutually_exclusive_group()
    door.add_argument(
        "--close-anonymous", action="store_true", help="callers without a key are refused"
    )
    door.add_argument(
        "--keep-anonymous", action="store_true", help="they are let in where they are now"
    )
    action("list", "list the callers; never their secrets", named=False)
    rotate = action("rotate", "make a second key; the old one stays valid until --finish")
    rotate.add_argument("--finish", action="store_true", help="end the old key")
    action("disable", "let a caller do nothing, at once")
    action("enable", "the opposite")
    action("remove", "forget a caller")


def _add_watching(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]", general: argparse.ArgumentParser
) -> None:
    choosing = argparse.ArgumentParser(add_help=False, parents=[general])
    choosing.add_argument("--url", help="address of the inspector, as the proxy printed it")
    choosing.add_argument(
        "--inspect-listen", metavar="ADDR", help="where it listens (default 127.0.0.1:4040)"
    )
    choosing.add_argument(
        "--q", metavar="WORDS", help="only with these words, anywhere in the line"
    )
    choosing.add_argument("--method", help="only this method")
    choosing.add_argument("--status", help="only 2xx, 3xx, 4xx, 5xx, pending, or one such as 404")
    choosing.add_argument("--caller", metavar="NAME", help="only this caller")
    choosing.add_argument("--family", help="only this family of operations, e.g. transfers")
    choosing.add_argument("--money", action="store_true", help="only what moves money")
    choosing.add_argument("--errors", action="store_true", help="only what failed or is unknown")
    tail = verbs.add_parser(
        "tail",
        parents=[choosing],
        help="print every request as it ends (needs the inspector)",
        description="Print every request as it ends, secrets masked; needs a proxy with the "
        "inspector open (serve --inspect).",
    )
    tail.add_argument("--json", action="store_true", help="print JSON, one object a line")
    tail.add_argument(
        "--last", type=_number, default=10, metavar="N", help="begin with the last N (default 10)"
    )
    tail.add_argument("--no-follow", dest="follow", action="store_false", help="end after those")
    export = verbs.add_parser(
        "export",
        parents=[choosing],
        help="write captured requests into a file (needs the inspector)",
        description="Write what the inspector has captured as an HTTP Archive (HAR 1.2), secrets "
        "masked, readable by you alone.",
    )
    export.add_argument("--har", metavar="FILE", required=True, help="where to; - is stdout")
    export.add_argument("--id", type=_number, metavar="N", help="only the exchange of this number")


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    return int(text)


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
        *((key, key) for _, key, _, _ in _SIMULATE),
    ):
        value = getattr(arguments, name, None)
        if value not in (None, []):
            flags[key] = value
    return flags
