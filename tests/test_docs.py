"""What is written down is true."""

import ast
import re
import shlex
import tomllib
from dataclasses import fields
from pathlib import Path

import page
import pytest
import settings_page

from proxy import __version__, errors
from proxy.cli.parser import make_parser
from proxy.core.caller import Digest
from proxy.settings import SettingsModel, UpstreamSettings, load
from proxy.settings.credentials import CREDENTIAL_VARIABLES
from proxy.settings.model import CallerEntry, keys, variable
from proxy.settings.reload import KEYS, SECTIONS, UPSTREAM_KEYS
from proxy.settings.sources import PLAIN_VARIABLES
from proxy.simulator import KINDS, Switches
from proxy.simulator.control import Control
from proxy.simulator.simulator import Simulator

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCS = [ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "ARCHITECTURE.md"]
DOCS += sorted((ROOT / "docs").rglob("*.md"))


def test_the_annotated_file_documents_every_key_with_its_default():
    text = (ROOT / "config/proxy.toml").read_text()
    values = tomllib.loads(re.sub(r"(?m)^# ([a-z0-9_]+ = )", r"\1", text))
    model = SettingsModel.model_validate(values)
    (entry,) = model.upstream
    documented = {f"upstream.0.{key}" for key in values.pop("upstream")[0]}
    for section, value in values.items():
        documented |= (
            {f"{section}.{key}" for key in value} if isinstance(value, dict) else {section}
        )
    assert documented == set(keys())
    assert model.model_copy(update={"upstream": ()}) == SettingsModel()
    shown = {"environment": None, "base_url": None, "client_id": None}
    shown |= {"client_secret_file": None, "account_id": None, "ca_file": None}
    assert entry.model_copy(update=shown) == UpstreamSettings()


def test_the_page_of_the_settings_is_what_the_model_and_the_file_say():
    text = settings_page.PAGE.read_text()
    assert text == settings_page.page(), "make settings-page"
    rows = re.findall(r"(?m)^\| `\w+`<br>`(\w+)` \|", text)
    assert sorted(rows) == sorted(variable(key) for key in keys())
    for key in settings_page.WATCHED:
        assert key in keys()


def test_no_key_is_explained_by_the_words_for_another():
    for section in settings_page.read(settings_page.FILE.read_text()):
        for names, words in section.groups:
            assert words, names
            assert len(names) < 4, names


@pytest.mark.parametrize("name", ["proxy.toml", "dev.toml"])
def test_the_example_files_load_as_they_are(name):
    settings = load(environ={}, config=str(ROOT / "config" / name), credentials=False)
    assert settings.warnings == ()


def commands() -> list[str]:
    found = []
    for path in DOCS:
        for line in re.findall(
            r"(?m)^\s*(?:\$ )?((?:nomba-proxy|make) [^#\n`]*)", path.read_text()
        ):
            found.append(line.strip())
        found += re.findall(r"`((?:nomba-proxy|make) [^`…]*)`", path.read_text())
    return found


def test_every_command_in_the_docs_exists():
    targets = re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text())
    assert len(commands()) > 5
    for command in commands():
        program, *arguments = shlex.split(command)
        if program == "make":
            assert arguments[0] in targets, command
        else:
            make_parser().parse_args(arguments)


def test_every_variable_in_the_docs_exists():
    known = {variable(key) for key in keys()} | set(PLAIN_VARIABLES.values())
    known |= {name for names in CREDENTIAL_VARIABLES.values() for name in names}
    known |= {
        "NOMBA_PROXY_CALLERS_SIGNING_KEY",
        "NOMBA_PROXY_STORE_PASSWORD",
        "NOMBA_PROXY_ADMIN_TOKEN",
    }
    known |= {"NOMBA_SUB_ACCOUNT_ID"}  # is no setting: the doctor looks whether it stands for one
    known |= {f"{name}_FILE" for name in known} | {"NOMBA_PROXY_CONFIG", "NOMBA_PROXY_UPSTREAM_"}
    texts = [path.read_text() for path in DOCS] + [(ROOT / "config/proxy.toml").read_text()]
    for text in texts:
        for name in re.findall(r"\bNOMBA_[A-Z_]*[A-Z_]\b", text):
            assert name in known or name == "NOMBA_PROXY_", name


def every_error(cls=errors.ProxyError):
    for child in cls.__subclasses__():
        yield child
        yield from every_error(child)


def test_the_table_of_errors_is_the_tree_of_errors():
    rows = re.findall(r"(?m)^\| `(\w+)` \| (\d{3}) \|", (ROOT / "docs/errors.md").read_text())
    answered = [one for one in every_error() if "code" in vars(one)]
    assert sorted(rows) == sorted((one.code, str(one.status)) for one in answered)
    drawn = re.findall(r"─ (\w+)\s+(\d{3})", errors.__doc__)
    assert sorted(drawn) == sorted((one.__name__, str(one.status)) for one in answered)


def test_the_map_is_short_and_knows_every_module():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    assert len(text.splitlines()) < 150
    for path in (ROOT / "proxy").rglob("*.py"):
        name = path.relative_to(ROOT / "proxy")
        if name.name not in {"__init__.py", "__main__.py"}:
            assert f"`{name.name}`" in text or f"`{name}`" in text, name


def test_the_manual_of_the_simulator_knows_every_fault_switch_and_route():
    text = (ROOT / "docs/simulator.md").read_text()
    rows = re.findall(r"(?m)^\| (`.+?`) \|", text)
    listed = {name for row in rows for name in re.findall(r"`([\w-]+)`", row)}
    switches = {one.name for one in fields(Switches)} - {"account_id"}
    assert listed == set(KINDS) | switches
    for route in Control(Simulator()).routes:
        assert route.partition(" ")[2] in text, route


def test_the_example_of_a_caller_can_be_used(tmp_path):
    text = (ROOT / "docs/callers.md").read_text()
    (example,) = re.findall(r"(?s)```toml\n(.+?)```", text)
    digest = str(Digest.of("x", salt="0" * 16))
    path = tmp_path / "callers.toml"
    path.write_text(example.replace("hmac-sha256:…", digest))
    assert set(tomllib.loads(path.read_text())["caller"][0]) == set(CallerEntry.model_fields)
    settings = load(environ={"NOMBA_PROXY_CALLERS_FILE": str(path)}, config=None, credentials=False)
    assert [one.name for one in settings.callers.callers] == ["billing"]


def test_the_example_of_two_upstreams_can_be_used(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("a-secret")
    secret.chmod(0o600)
    text = (ROOT / "docs/upstreams.md").read_text()
    (example,) = re.findall(r"(?s)```toml\n(.+?)```", text)
    example = re.sub(r"/run/secrets/[\w-]+", str(secret), example).replace('"…"', '"an-id"')
    path = tmp_path / "proxy.toml"
    path.write_text(example)
    settings = load(environ={}, config=str(path))
    assert [one.origin.environment for one in settings.upstreams] == ["production", "sandbox"]
    assert {"live.localhost", "sandbox.nomba.com"} < settings.hosts


def told_as_trouble() -> set[str]:
    """The events that the code can emit as a warning or an error."""
    found = set()
    for path in (ROOT / "proxy").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Event"):
                continue
            name, level = (*node.args, None, None)[:2]
            known = level is None or getattr(level, "value", "") in {"info", "debug"}
            if isinstance(name, ast.Constant) and not known:
                found.add(name.value)
    return found


def test_troubleshooting_knows_every_error_and_every_event_that_is_trouble():
    text = (ROOT / "docs/troubleshooting.md").read_text()
    for one in every_error():
        assert f"`{one.code}`" in text, one.code
    table = text.partition("## Every warning and error of the log")[2]
    rows = [re.findall(r"`(\w+)`", row) for row in re.findall(r"(?m)^\| (`.+?) \|", table)]
    events = told_as_trouble()
    assert len(events) > 30
    assert {name for row in rows for name in row} == events


def test_the_two_tables_of_events_agree_on_what_is_trouble():
    def levels(name, title):
        table = (ROOT / "docs" / name).read_text().partition(title)[2]
        rows = re.findall(r"(?m)^\| (`.+?) \| ([a-z, ]+) \|", table)
        return {
            one: set(text.split(", ")) for row, text in rows for one in re.findall(r"`(\w+)`", row)
        }

    every = levels("logs.md", "## Events")
    for name, found in levels("troubleshooting.md", "## Every warning").items():
        assert found == every[name] - {"info"}, name


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 120


def test_the_changelog_knows_this_version():
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


def anchors(text: str) -> set[str]:
    """The places of a page that a link can name."""
    text = re.sub(r"(?ms)^```.*?^```$", "", text)
    titles = re.findall(r"(?m)^#+ (.+)$", text)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in titles}


def test_links_between_the_docs_lead_somewhere():
    for path in [*DOCS, ROOT / "CHANGELOG.md"]:
        for link in re.findall(r"\]\((?!http)([^)]+)\)", path.read_text()):
            name, _, place = link.partition("#")
            page = path.parent / name if name else path
            assert page.exists(), f"{path.name}: {link}"
            if place:
                assert place in anchors(page.read_text()), f"{path.name}: {link}"


def test_every_page_can_be_reached_from_the_readme():
    seen, pages = set(), [ROOT / "README.md"]
    while pages:
        page = pages.pop()
        if page in seen:
            continue
        seen.add(page)
        for link in re.findall(r"\]\((?!http)([^)#]+\.md)", page.read_text()):
            if link != "CHANGELOG.md":  # nobody looks for a manual there
                pages.append((page.parent / link).resolve())
    assert {one.name for one in DOCS if one not in seen and one.parent.name != "adr"} == set()


def test_lock_files_name_no_host():
    for path in (ROOT / "requirements").glob("*.txt"):
        text = path.read_text()
        assert "--hash=sha256:" in text
        assert not re.search(r"https?://|--index|--find-links", text), path.name


@pytest.mark.parametrize("folder", ["bench/fastify", "conformance/http-cache-tests"])
def test_the_locks_of_npm_hold_no_address(folder):
    text = (ROOT / folder / "package-lock.json").read_text()
    assert '"integrity": "sha512-' in text
    assert '"resolved"' not in text
    assert not re.search(r"https?://", text)


@pytest.mark.parametrize("path", page.PAGES, ids=lambda path: path.name)
def test_the_figures_are_those_that_were_measured(path):
    text = path.read_text()
    assert page.filled(text) == text
    assert "<!-- table" in text


def test_the_page_of_the_admin_listener_names_every_route_and_what_is_taken_over():
    page = (ROOT / "docs/admin.md").read_text()
    source = (ROOT / "proxy/admin.py").read_text()
    routes = set(re.findall(r'"(/[a-z/-]+)"', source))
    assert routes
    assert {one for one in routes if f"`{one}" not in page} == set()
    for section in SECTIONS:
        assert f"`[{section}]`" in page
    for key in KEYS["callers"]:
        assert f"`callers.{key}`" in page
    assert "`log.level`" in page
    for key in UPSTREAM_KEYS:
        assert f"`{key}`" in page
