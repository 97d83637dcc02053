"""Imports point down, never sideways; and some things happen in one room only.

    __main__ → cli → doctor → app → handler → replying → course, drain → server, calls
    → body | tokens | upstream | callers → core → errors, data

`tokens` and `callers` may ask the server that replicas share, through `valkey`.
`tokens`, `upstream` and `callers` meet only in `handler` and `app`, and in `doctor` above them. Observers (`admin`,
`telemetry`) see nothing but `core` and `errors`. The simulator stands outside.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PROXY = Path(__file__).parents[1] / "proxy"

# A room is a package or module directly under proxy/. It may import itself and:
MAY_IMPORT = {
    "__main__": {"cli"},
    "cli": {
        "app",
        "doctor",
        "local_ca",
        "core",
        "settings",
        "simulator",
        "proxy",
    },  # `proxy` itself holds the version, nothing else
    "app": {
        *("handler", "gate", "server", "quiet", "body", "tokens", "upstream", "callers", "core"),
        *("errors", "drain", "settings", "admin", "telemetry", "inspector", "simulator", "proxy"),
        *("metrics", "supervisor", "tracing", "valkey"),
    },
    "doctor": {"app", "tokens", "upstream", "settings", "core", "errors"},
    "local_ca": set(),
    "supervisor": {"core", "errors"},
    "handler": {
        *("course", "gate", "replying", "calls", "intake"),
        *("body", "upstream", "callers", "core", "errors"),
    },
    "replying": {"course", "gate", "calls", "quiet", "upstream", "core", "errors"},
    "course": {"gate", "calls", "body", "upstream", "core", "errors"},
    "gate": {"calls", "tokens", "upstream", "callers", "core", "errors"},
    "drain": {"server"},
    "intake": {"calls", "body", "errors"},
    "server": {"calls", "quiet", "core", "errors", "sending", "slow"},
    "calls": {"quiet", "core", "errors", "sending", "slow"},
    "slow": set(),
    "quiet": {"core", "errors"},
    "body": {"core", "errors"},
    "tokens": {"core", "errors", "valkey"},
    "valkey": {"core"},
    "upstream": {"core", "errors", "sending"},
    "sending": set(),
    "callers": {"core", "errors", "valkey"},
    "settings": {"core", "errors", "simulator"},
    "admin": {"core", "errors"},
    "telemetry": {"metrics", "core", "errors"},
    "metrics": {"core", "errors"},
    "tracing": {"core", "errors"},
    "inspector": {"core", "errors"},
    "simulator": {"data"},
    "core": {"errors", "data"},
    "errors": set(),
    "data": set(),
    "proxy": set(),
}

# Libraries that one room has for itself.
ONLY_IN = {
    "structlog": {"telemetry"},
    "prometheus_client": {"metrics"},
    "pydantic": {"settings"},
    "argparse": {"cli"},
    "redis": {"valkey"},
    "opentelemetry": {"tracing"},
    "tomlkit": {"cli"},
    "cryptography": {"tokens", "local_ca", "doctor"},
    "pycares": {"upstream"},
}

# What the pure core has no use for: clocks, chance, waiting, the world outside.
IMPURE = {
    *("asyncio", "threading", "multiprocessing", "concurrent", "subprocess", "signal"),
    *("time", "random", "secrets", "uuid", "tempfile", "os", "sys", "pathlib", "logging"),
    *(
        "socket",
        "ssl",
        "select",
        "selectors",
        "http.client",
        "urllib.request",
        "aiohttp",
        "httptools",
    ),
}
IMPURE_ATTRIBUTES = {"now", "utcnow", "today", "urandom", "getenv", "environ"}
IMPURE_BUILTINS = {"open", "print", "input"}
# Request ids are random by nature: the one impurity that is let in.
PURITY_EXCEPTIONS = {"core/ids.py": {"random"}}

ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv"}
READS_ENVIRONMENT = {"settings/__init__.py"}

OPENS_CONNECTIONS = {
    *("create_connection", "create_unix_connection", "open_connection", "open_unix_connection"),
    *(
        "start_connection",
        "sock_connect",
        "connect_ex",
        "ClientSession",
        "TCPConnector",
        "start_tls",
    ),
    *("urlopen", "build_opener", "HTTPConnection", "HTTPSConnection", "create_datagram_endpoint"),
}
# Beside upstream/, `cli/asking.py` asks the admin listener of this machine, `tail` and `export` ask
# the inspector, and `doctor` whatever listens here. The simulator may talk to its own side: it is
# nobody's way to Nomba.
CONNECTORS = (
    "upstream/",
    "simulator/client.py",
    "cli/asking.py",
    "cli/inspector.py",
    "doctor/local.py",
)

# What is captured of requests is raw. It has one way out to people, and one back to the proxy.
UNCOVERS = {"inspector/ring.py", "inspector/exit.py", "inspector/replay.py"}
# What lies behind a seal, or is on its way there, is looked at where it lies only.
BEHIND = {
    "inspector/ring.py": {"_parts", "_kept", "_changed"},
    "inspector/relay.py": {"_calls", "_out"},
}
# Heads get into a recording whole and are cut, but for those that a relay has cut.
CUT_BEFORE = {"tried", "replied"}


@dataclass(frozen=True)
class Module:
    """One source file: its path below the package, its room, its syntax tree."""

    path: str
    room: str
    tree: ast.Module

    def imports(self, top: str = "proxy") -> Iterator[str]:
        """Dotted names this module imports, anywhere in it; relative ones made absolute."""
        package = [top, *Path(self.path).parent.parts]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else []
                prefix = ".".join([*base, *filter(None, [node.module])])
                yield from (f"{prefix}.{alias.name}" for alias in node.names)

    def names(self) -> set[str]:
        """Every attribute, bare name and imported name that is used."""
        found = {name.rpartition(".")[2] for name in self.imports()}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, ast.Name):
                found.add(node.id)
        return found


def read(root: Path) -> list[Module]:
    """Every module under a package's folder."""
    modules = []
    for file in sorted(root.rglob("*.py")):
        path = file.relative_to(root)
        room = "proxy" if path == Path("__init__.py") else path.parts[0].removesuffix(".py")
        modules.append(Module(path.as_posix(), room, ast.parse(file.read_text("utf-8"))))
    return modules


def rooms_imported(module: Module, rooms: set[str]) -> set[str]:
    """The rooms a module reaches into, its own left out."""
    found = set()
    for name in module.imports():
        top, _, rest = name.partition(".")
        if top == "proxy":
            room = rest.partition(".")[0]
            found.add(room if room in rooms else "proxy")
    return found - {module.room}


def within(name: str, library: str) -> bool:
    return name == library or name.startswith(library + ".")


def direction(modules: list[Module]) -> list[str]:
    """Imports that point up or sideways, and rooms without a rule."""
    rooms = {one.room for one in modules}
    wrong = [f"{room}: no rule says what it may import" for room in sorted(rooms - set(MAY_IMPORT))]
    for module in modules:
        allowed = MAY_IMPORT.get(module.room, set())
        for room in sorted(rooms_imported(module, rooms) - allowed):
            wrong.append(f"{module.path}: imports {room}")
    return wrong


def libraries(modules: list[Module]) -> list[str]:
    """Libraries that are imported outside the room they belong to."""
    return [
        f"{module.path}: imports {library}"
        for module in modules
        for library, homes in ONLY_IN.items()
        if module.room not in homes and any(within(name, library) for name in module.imports())
    ]


def impurities(modules: list[Module]) -> list[str]:
    """What in core/ is no plain function of its arguments."""
    wrong = []
    for module in (one for one in modules if one.room == "core"):
        used = {one for one in IMPURE if any(within(name, one) for name in module.imports())}
        for node in ast.walk(module.tree):
            match node:
                case ast.Attribute(attr=name) if name in IMPURE_ATTRIBUTES:
                    used.add(name)
                case ast.Call(func=ast.Name(id=name)) if name in IMPURE_BUILTINS:
                    used.add(name)
                case ast.AsyncFunctionDef() | ast.Await() | ast.AsyncFor() | ast.AsyncWith():
                    used.add("async")
        for one in sorted(used - PURITY_EXCEPTIONS.get(module.path, set())):
            wrong.append(f"{module.path}: uses {one}")
    return wrong


def environment(modules: list[Module]) -> list[str]:
    """Who else reads the environment."""
    return [
        f"{module.path}: uses {name}"
        for module in modules
        if module.path not in READS_ENVIRONMENT and _imports(module, "os")
        for name in sorted(module.names() & ENVIRONMENT)
    ]


def _imports(module: Module, library: str) -> bool:
    return any(within(name, library) for name in module.imports())


def connections(modules: list[Module]) -> list[str]:
    """Who else opens connections."""
    return [
        f"{module.path}: uses {name}"
        for module in modules
        if not module.path.startswith(CONNECTORS)
        for name in sorted(module.names() & OPENS_CONNECTIONS)
    ]


def uncovers(modules: list[Module]) -> list[str]:
    """What is captured is read in one room's two doors only, and nobody looks behind its seals."""
    return [
        f"{module.path}: uses {name}"
        for module in modules
        if module.path not in UNCOVERS
        for name in sorted(module.names())
        if name in {"uncover", "Clip"} or name.startswith("sealed_")
    ] + [
        f"{module.path}: uses {name}"
        for module in modules
        if module.room == "inspector"
        for home, names in [*BEHIND.items(), ("inspector/hub.py", CUT_BEFORE)]
        for name in sorted(module.names() & names)
        if module.path not in {home, "inspector/ring.py"}
    ]


CHECKS = [direction, libraries, impurities, environment, connections, uncovers]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_rooms_keep_to_their_rules(check):
    assert check(read(PROXY)) == []


def test_the_rules_speak_of_rooms_that_exist():
    rooms = {one.room for one in read(PROXY)}
    assert rooms == set(MAY_IMPORT)


def test_the_rules_have_no_circle():
    left = dict(MAY_IMPORT)
    while left:
        done = {room for room, below in left.items() if not below & set(left)}
        assert done, f"a circle among {sorted(left)}"
        left = {room: below for room, below in left.items() if room not in done}


def test_the_three_neighbours_never_meet():
    neighbours = {"tokens", "upstream", "callers"}
    assert not any(MAY_IMPORT[one] & neighbours for one in neighbours)


@pytest.mark.parametrize("path", PURITY_EXCEPTIONS)
def test_an_exception_to_purity_is_still_needed(path):
    (module,) = (one for one in read(PROXY) if one.path == path)
    assert PURITY_EXCEPTIONS[path] <= module.names()


# -- the checks themselves -------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    """A small package that keeps every rule, with one file added or replaced."""

    def grow(path, source):
        for name, text in {
            "__init__.py": '__version__ = "1"',
            "errors.py": "",
            "core/__init__.py": "",
            "core/judge.py": "import re\nfrom proxy.errors import X",
            "tokens/__init__.py": "",
            "tokens/manager.py": "from proxy.core import judge\nimport asyncio",
            "upstream/dialler.py": "import asyncio\nasyncio.open_connection",
            "callers/login.py": "from proxy.core.judge import judge",
            "gate.py": "from proxy.tokens.manager import Session",
            "telemetry.py": "import structlog",
            "settings/__init__.py": "import os\nos.environ",
            "simulator/api.py": "from proxy.simulator import bank",
            "simulator/bank.py": "",
            path: source,
        }.items():
            file = tmp_path / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        return read(tmp_path)

    return grow


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_tidy_tree_breaks_no_rule(tree, check):
    assert check(tree("errors.py", "")) == []


@pytest.mark.parametrize(
    ("check", "path", "source"),
    [
        (direction, "tokens/manager.py", "from proxy.upstream.dialler import Dialler"),
        (direction, "tokens/manager.py", "from proxy import upstream"),
        (direction, "tokens/manager.py", "import proxy.upstream.dialler as d"),
        (direction, "tokens/manager.py", "from ..upstream import dialler"),
        (direction, "tokens/manager.py", "from .. import callers"),
        (direction, "tokens/__init__.py", "from ..callers.login import x"),
        (direction, "tokens/manager.py", "def f():\n    from proxy.handler import Handler"),
        (direction, "tokens/manager.py", "if TYPE_CHECKING:\n    import proxy.callers.login"),
        (direction, "callers/login.py", "from proxy.tokens.manager import Session"),
        (direction, "core/judge.py", "from proxy import handler"),
        (direction, "core/judge.py", "from proxy import __version__"),
        (direction, "errors.py", "from proxy.core import judge"),
        (direction, "errors.py", "from . import core"),
        (direction, "telemetry.py", "from proxy.tokens.manager import Session"),
        (direction, "simulator/api.py", "from proxy.core.judge import judge"),
        (direction, "handler.py", "import proxy.settings"),
        (direction, "newroom/thing.py", ""),
        (libraries, "handler.py", "import structlog"),
        (libraries, "core/judge.py", "from structlog.stdlib import get_logger"),
        (libraries, "app.py", "def f():\n    from prometheus_client import Counter"),
        (impurities, "core/judge.py", "import asyncio"),
        (impurities, "core/judge.py", "from time import monotonic"),
        (impurities, "core/judge.py", "import os.path"),
        (impurities, "core/judge.py", "from urllib import request"),
        (impurities, "core/judge.py", "import datetime\ndatetime.datetime.now()"),
        (impurities, "core/judge.py", "async def f(): ..."),
        (impurities, "core/judge.py", "open('x')"),
        (impurities, "core/ids.py", "import os, time\nos.urandom(1)"),
        (impurities, "core/judge.py", "import random"),
        (environment, "handler.py", "import os\nos.environ['X']"),
        (environment, "handler.py", "import os as o\no.getenv('X')"),
        (environment, "handler.py", "from os import environ"),
        (environment, "cli/token.py", "from os import getenv as g"),
        (connections, "tokens/manager.py", "import asyncio\nasyncio.open_connection('a', 1)"),
        (connections, "tokens/manager.py", "from aiohttp import ClientSession as S"),
        (connections, "handler.py", "loop.create_connection(f, 'a', 1)"),
        (connections, "simulator/api.py", "import aiohttp\naiohttp.ClientSession()"),
        (connections, "cli/check.py", "from urllib.request import urlopen"),
        (uncovers, "inspector/har.py", "def har(clip):\n    return clip.uncover()"),
        (uncovers, "inspector/server.py", "from proxy.inspector.ring import Clip"),
        (uncovers, "inspector/exit.py", "def f(clip):\n    return clip._parts"),
        (uncovers, "inspector/har.py", "def f(recording):\n    return recording.sealed_start"),
        (uncovers, "inspector/hub.py", "def f(recording):\n    return recording.sealed_start"),
        (uncovers, "inspector/hub.py", "def f(relay):\n    return relay._out"),
        (
            uncovers,
            "inspector/relay.py",
            "def f(recording):\n    return recording.request.uncover()",
        ),
        (uncovers, "inspector/relay.py", "def f(recording):\n    recording.tried(b'')"),
        (uncovers, "handler.py", "def f(capture):\n    return capture.request.uncover()"),
    ],
)
def test_a_broken_rule_is_found_where_it_is_broken(tree, check, path, source):
    (found,) = {one.partition(":")[0] for one in check(tree(path, source))}
    assert found in {path, Path(path).parts[0]}


@pytest.mark.parametrize(
    ("check", "path", "source"),
    [
        (direction, "tokens/manager.py", "from .store import Store\nfrom . import store"),
        (direction, "tokens/manager.py", "# from proxy.upstream import dialler\n'proxy.upstream'"),
        (direction, "tokens/manager.py", "from proxying.upstream import x"),
        (impurities, "core/ids.py", "import random\nrandom.getrandbits(1)"),
        (impurities, "core/judge.py", "from urllib.parse import unquote\nimport datetime"),
        (impurities, "handler.py", "import time\nasync def f(): ..."),
        (environment, "handler.py", "def environ(): ...\nenviron()"),
        (connections, "upstream/pool.py", "asyncio.create_connection"),
        (connections, "simulator/server.py", "loop.create_server(f)"),
        (uncovers, "inspector/replay.py", "def f(clip):\n    return clip.uncover()"),
        (uncovers, "inspector/hub.py", "def f(recording):\n    recording.tried(b'')"),
    ],
)
def test_what_only_resembles_a_broken_rule_is_let_be(tree, check, path, source):
    assert check(tree(path, source)) == []
