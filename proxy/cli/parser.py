"""The parser: verbs, flags, and what `--help` says of them."""

import argparse
from dataclasses import Field, fields

from proxy import __version__
from proxy.simulator import KINDS, Kind, Switches, choices

_EPILOG = """\
settings: flag over environment over file over default; config/proxy.toml in the source
tree documents every key, and `nomba-proxy check --show` prints the effective ones.

credentials come from the environment, never from a flag:
  NOMBA_CLIENT_ID, NOMBA_CLIENT_SECRET (or NOMBA_PRIVATE_KEY), NOMBA_ACCOUNT_ID
  (or NOMBA_PARENT_ACCOUNT_ID); each also as …_FILE, or in $CREDENTIALS_DIRECTORY.
  NOMBA_ENVIRONMENT=production|sandbox or NOMBA_BASE_URL chooses where they are used.

exit codes: 0 ok, 1 failure, 2 usage or settings that cannot be used
"""


_CONTROL = "127.0.0.1:8091"
# Flags of `simulate`: name, key, placeholder, help.
SIMULATE = (
    ("--listen", "simulator.listen", "ADDR", "where it listens (default 127.0.0.1:8090)"),
    (
        "--control-listen",
        "simulator.control_listen",
        "ADDR",
        f"where its control API listens (default {_CONTROL})",
    ),
    ("--seed", "simulator.seed", "N", "the same seed, the same identifiers (default 1)"),
    ("--state", "simulator.state_file", "FILE", "keep the state in a file and go on from it"),
    ("--fault", "simulator.faults", "FAULT", "misbehave, see below (repeatable)"),
)


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
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
        help="admin listener, host:port or unix:///path [NOMBA_PROXY_ADMIN_LISTEN] "
        "(default 127.0.0.1:9091)",
    )
    serving = argparse.ArgumentParser(add_help=False, parents=[common])
    serving.add_argument(
        "--listen",
        metavar="ADDR",
        action="append",
        help="traffic listener: host:port, https://host:port, unix:///path?mode=0660 or fd:3 "
        "(repeatable) [NOMBA_PROXY_LISTEN] (default 127.0.0.1:8080)",
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
    _add_doctor(verbs, serving)
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
    _add_certs(verbs, general)
    _add_watching(verbs, general)
    simulate = verbs.add_parser(
        "simulate",
        parents=[general],
        help="run the simulator alone: a Nomba to build against",
        description="Run a simulated Nomba until SIGINT or SIGTERM; no credentials needed.",
        epilog=_faults_and_switches(),
        formatter_class=raw,
    )
    for flag, key, metavar, text in SIMULATE:
        how = "append" if flag == "--fault" else "store"
        simulate.add_argument(flag, dest=key, metavar=metavar, help=text, action=how)
    complete = verbs.add_parser(
        "completion",
        help="print a script by which a shell completes verbs and flags",
        description="Print a script by which a shell completes verbs and flags.",
        epilog='bash: eval "$(nomba-proxy completion bash)"   (in ~/.bashrc)\n'
        "zsh:  nomba-proxy completion zsh > a folder of $fpath, as _nomba-proxy\n"
        "fish: nomba-proxy completion fish > ~/.config/fish/completions/nomba-proxy.fish",
        formatter_class=raw,
    )
    complete.add_argument("shell", choices=("bash", "zsh", "fish", "tcsh"))
    verbs.add_parser("version", help="print the version")
    return parser


def _add_doctor(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]", serving: argparse.ArgumentParser
) -> None:
    doctor = verbs.add_parser(
        "doctor",
        parents=[serving],
        help="say why it does not work, step by step",
        description="Try everything that the proxy needs, in order, and say what to do about what "
        "does not work. A running proxy and the store are asked first, and their session is never "
        "ended: the doctor logs in only where neither has one, and revokes that token in the end.",
        epilog="exit codes: 0 nothing is wrong, 1 something is",
    )
    doctor.add_argument("--upstream", metavar="NAME", help="only this one, if there are several")
    doctor.add_argument(
        "--no-issue",
        action="store_true",
        help="never log in: a proxy on another machine may have a session that would end",
    )
    doctor.add_argument("--json", action="store_true", help="print JSON")


def _name(text: str) -> str:
    from proxy.core.caller import NAME

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
    add.add_argument(
        "--certificate",
        action="append",
        metavar="PATTERN",
        help="known by a certificate with subject:CN=NAME,O=NAME, dns:NAME, uri:URI or "
        "email:ADDRESS (repeatable)",
    )
    add.add_argument(
        "--uid", action="append", metavar="USER", help="known by this at a Unix socket (repeatable)"
    )
    add.add_argument("--no-key", action="store_true", help="known by certificate or uid alone")
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


def _host(text: str) -> str:
    from ipaddress import ip_address

    from proxy.core.origin import host_name

    try:
        return str(ip_address(text))
    except ValueError:
        name = host_name(text)
    if not name or ":" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a host name nor an address")
    return name


def _add_certs(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]", general: argparse.ArgumentParser
) -> None:
    made = verbs.add_parser(
        "certs",
        parents=[general],
        help="make a local CA and a certificate, for apps whose host is hard-coded",
        description="Make a local CA and a certificate of it for api.nomba.com and "
        "sandbox.nomba.com, and say how they are used. Run again it renews the certificate and "
        "keeps the CA, which apps trust already.",
    )
    made.add_argument("--dir", metavar="DIR", help="where to (default: certs in the state folder)")
    made.add_argument(
        "--name",
        action="append",
        default=[],
        type=_host,
        metavar="HOST",
        help="a name or address more, by which apps call the proxy (repeatable)",
    )
    made.add_argument("--new-ca", action="store_true", help="replace the CA too")
    made.add_argument("--json", action="store_true", help="print JSON")


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


def _faults_and_switches() -> str:
    """What the help of `simulate` says beyond the flags."""
    faults = "\n".join(_fault(name, kind) for name, kind in KINDS.items())
    switches = "\n".join(_switch(one) for one in fields(Switches) if one.name != "account_id")
    return f"""\
faults, for --fault 'NAME path=/v2/transfers/* method=POST times=2 probability=0.1':
{faults}
  path and method choose the requests (* stands for anything), times=always never ends.
  A JSON body wants quotes of its own: --fault 'reply body='"'"'{{"code": "01"}}'"'"
  The control API takes the same ones at any time: curl -s http://{_CONTROL}/

switches (--set simulator.KEY=VALUE, or NOMBA_PROXY_SIMULATOR_KEY, or the settings file);
(D) is documented by Nomba, (O) observed by others, (A) an assumption:
{switches}
  the account is NOMBA_ACCOUNT_ID, if that is set.

examples:
  nomba-proxy simulate
  nomba-proxy simulate --fault 'lose-reply path=/v2/transfers/bank' --set simulator.lifetime=60
  nomba-proxy simulate --state nomba.json --seed 7
"""


def _fault(name: str, kind: Kind) -> str:
    options = [f"{key}={_written(value) or '…'}" for key, value in kind.options.items()]
    return f"  {name:<20}{kind.about}" + (f"  [{' '.join(options)}]" if options else "")


def _switch(one: "Field[object]") -> str:
    default = _written(one.default) or "none"
    known = f"{choices(one.type)}; default {default}"
    return f"  {one.name:<24}{one.metadata['about']}\n{'':<26}{known}"


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else ("" if value == () else str(value))
