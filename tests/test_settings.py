"""Settings: where each value comes from, and every way to get them wrong."""

import json
import os
import pwd
import re
import socket
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from certificates import Authority

from proxy.core.caller import Digest
from proxy.core.secret import SecretMisuse
from proxy.settings import SettingsError, describe, load, parse_address, parse_origin

SECRET = "MARKED-SECRET-0123456789abcdef"
CREDENTIALS = {
    "NOMBA_CLIENT_ID": "client-0123456789",
    "NOMBA_CLIENT_SECRET": SECRET,
    "NOMBA_ACCOUNT_ID": "account-0123456789",
}
SANDBOX = {"NOMBA_ENVIRONMENT": "sandbox"}
PRODUCTION = "https://api.nomba.com"


@pytest.fixture
def write(tmp_path):
    """Write a file that nobody else can read; its path as text."""

    def begin(text, name="proxy.toml", mode=0o600):
        path = tmp_path / name
        path.write_bytes(text.encode())
        path.chmod(mode)
        return str(path)

    return begin


def settings(config=None, /, *, flags=None, **environ):
    """Load with credentials; `None` takes a variable away."""
    named = CREDENTIALS | environ
    kept = {name: value for name, value in named.items() if value is not None}
    return load(environ=kept, config=config, flags=flags)


def bare(config=None, /, *, flags=None, credentials=True, **environ):
    """Load without credentials."""
    return load(environ=environ, config=config, flags=flags, credentials=credentials)


def problems(begin, *args, **kwargs):
    """The problems by key."""
    with pytest.raises(SettingsError) as caught:
        begin(*args, **kwargs)
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value.problems)
    return {one.key: one for one in caught.value.problems}


def problem(begin, *args, **kwargs):
    """The only problem."""
    (only,) = problems(begin, *args, **kwargs).values()
    return only


def shown(loaded):
    """What `describe` says: key to (value, origin)."""
    return {key: (value, origin) for key, value, origin in describe(loaded)}


def upstream(loaded):
    (only,) = loaded.upstreams
    return only


def reveal(loaded):
    one = upstream(loaded)
    return one.client_secret.reveal(to=one.origin.text)


# -- precedence ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sources", "value", "origin"),
    [
        ("", "info", "default"),
        ("file", "error", "file {}"),
        ("file environment", "warning", "environment NOMBA_PROXY_LOG_LEVEL"),
        ("file environment flag", "debug", "flag"),
        ("file flag", "debug", "flag"),
        ("environment flag", "debug", "flag"),
        ("environment", "warning", "environment NOMBA_PROXY_LOG_LEVEL"),
    ],
)
def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(
    write, sources, value, origin
):
    file = write('[log]\nlevel = "error"' if "file" in sources else "")
    environ = {"NOMBA_PROXY_LOG_LEVEL": "warning"} if "environment" in sources else {}
    loaded = settings(file, flags={"log.level": "debug"} if "flag" in sources else {}, **environ)
    assert shown(loaded)["log.level"] == (value, origin.format(file))


@pytest.mark.parametrize(
    ("toml", "variable", "key", "value"),
    [
        ('listen = "{}"', "NOMBA_PROXY_LISTEN", "listen", "127.0.0.1:{}"),
        ('[admin]\nlisten = "{}"', "NOMBA_PROXY_ADMIN_LISTEN", "admin.listen", "127.0.0.1:{}"),
        (
            '[[upstream]]\nbase_url = "{}"',
            "NOMBA_BASE_URL",
            "upstream.0.base_url",
            "http://127.0.0.1:{}",
        ),
        ('[[upstream]]\nname = "{}"', "NOMBA_PROXY_UPSTREAM_NAME", "upstream.0.name", "n{}"),
    ],
)
def test_every_kind_of_key_knows_the_same_order(write, toml, variable, key, value):
    one, two, three = (value.format(number) for number in (1, 2, 3))
    file = write(toml.format(one))
    assert shown(settings(file))[key] == (one, f"file {file}")
    assert shown(settings(file, **{variable: two}))[key] == (two, f"environment {variable}")
    assert shown(settings(file, flags={key: three}, **{variable: two}))[key] == (three, "flag")


@pytest.mark.parametrize("key", ["client_id", "account_id"])
def test_an_identifier_given_as_a_flag_is_used_or_refused_but_not_ignored(key):
    flags = {f"upstream.0.{key}": "another-0123456789"}
    try:
        loaded = settings(flags=flags)
    except SettingsError:
        return
    assert getattr(upstream(loaded), key) == "another-0123456789"


def test_the_named_config_beats_the_one_in_the_environment(write):
    one, two = write('[log]\nlevel = "error"', "1.toml"), write('[log]\nlevel = "debug"', "2.toml")
    assert settings(NOMBA_PROXY_CONFIG=one).model.log.level == "error"
    assert settings(two, NOMBA_PROXY_CONFIG=one).model.log.level == "debug"


def test_defaults_alone_serve_production_on_loopback():
    loaded = settings()
    assert (str(loaded.listen[0]), str(loaded.admin_listen)) == ("127.0.0.1:8080", "127.0.0.1:9091")
    assert upstream(loaded).origin.text == PRODUCTION
    assert not loaded.simulate
    assert not loaded.warnings


def test_every_setting_is_described_with_its_origin():
    rows = shown(settings())
    assert {"listen", "simulate", "token.early", "body.limit", "upstream.0.mount"} <= set(rows)
    assert rows["upstream.0.client_id"][1] == "environment NOMBA_CLIENT_ID"
    assert rows["token.early"] == ("300.0", "default")


def test_a_secret_from_a_file_that_the_settings_name_is_described_as_such(write):
    file = write(f'[[upstream]]\nclient_secret_file = "{write(SECRET, "secret")}"')
    value, origin = shown(settings(file, NOMBA_CLIENT_SECRET=None))["upstream.0.client_secret"]
    assert value == "***"
    assert origin != "default"


# -- all problems at once --------------------------------------------------------------


def test_all_problems_are_reported_at_once_with_key_origin_and_hint(write):
    file = write('listen = "nonsense"\n[log]\nformat = "xml"\n[admin]\nlisten = "0.0.0.0"')
    found = problems(
        bare,
        file,
        flags={"log.levle": "debug"},
        NOMBA_PROXY_TOKEN_EARLY="-1",
        NOMBA_BASE_URL="https://api.sandbox.nomba.com",
    )
    assert {key: one.origin for key, one in found.items()} == {
        "listen": f"file {file}",
        "log.format": f"file {file}",
        "admin.listen": f"file {file}",
        "log.levle": "flag",
        "token.early": "environment NOMBA_PROXY_TOKEN_EARLY",
        "upstream.0.base_url": "environment NOMBA_BASE_URL",
        "NOMBA_CLIENT_ID": "",
        "NOMBA_CLIENT_SECRET": "",
        "NOMBA_ACCOUNT_ID": "",
    }
    assert "log.level" in found["log.levle"].hint
    assert "json" in found["log.format"].text


def test_the_error_prints_every_problem():
    with pytest.raises(SettingsError) as caught:
        settings(NOMBA_PROXY_LISTEN="x", NOMBA_PROXY_ADMIN_LISTEN="y")
    assert "listen (environment NOMBA_PROXY_LISTEN): " in str(caught.value)
    assert "admin.listen (environment NOMBA_PROXY_ADMIN_LISTEN): " in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value", "key"),
    [
        ("NOMBA_PROXY_SIMULATE", "sometimes", "simulate"),
        ("NOMBA_PROXY_LOG_FORMAT", "xml", "log.format"),
        ("NOMBA_PROXY_LOG_LEVEL", "loud", "log.level"),
        ("NOMBA_PROXY_CALLERS_ANONYMOUS", "maybe", "callers.anonymous"),
        ("NOMBA_PROXY_CALLERS_IDLE_TIMEOUT", "0", "callers.idle_timeout"),
        ("NOMBA_PROXY_BODY_LIMIT", "0", "body.limit"),
        ("NOMBA_PROXY_BODY_LIMIT", "-1", "body.limit"),
        ("NOMBA_PROXY_TOKEN_EARLY", "nan", "token.early"),
        ("NOMBA_PROXY_TIMEOUTS_TOTAL", "inf", "timeouts.total"),
        ("NOMBA_PROXY_DRAIN_LIMIT", "soon", "drain.limit"),
        ("NOMBA_PROXY_UPSTREAM_ACCOUNT_POLICY", "any", "upstream.0.account_policy"),
        ("NOMBA_PROXY_UPSTREAM_NAME", "Not A Name", "upstream.0.name"),
        ("NOMBA_PROXY_UPSTREAM_SESSION_SCOPE", "origin", "upstream.0.session_scope"),
        ("NOMBA_PROXY_UPSTREAM_STRIP_MOUNT", "perhaps", "upstream.0.strip_mount"),
        ("NOMBA_PROXY_UPSTREAM_HOSTS", "a, b:80", "upstream.0.hosts"),
        ("NOMBA_PROXY_UPSTREAM_MOUNT", "nomba", "upstream.0.mount"),
        ("NOMBA_ENVIRONMENT", "staging", "upstream.0.environment"),
        ("NOMBA_BASE_URL", "api.nomba.com", "upstream.0.base_url"),
    ],
)
def test_a_wrong_value_is_refused_by_key_and_variable(variable, value, key):
    found = problem(settings, **{variable: value})
    assert (found.key, found.origin) == (key, f"environment {variable}")


@pytest.mark.parametrize(
    ("environ", "key"),
    [
        ({"NOMBA_CLIENT_ID": "has space"}, "NOMBA_CLIENT_ID"),
        ({"NOMBA_ACCOUNT_ID": "line\nbreak"}, "NOMBA_ACCOUNT_ID"),
        (
            {"NOMBA_CLIENT_SECRET": None, "NOMBA_CLIENT_SECRET_FILE": "/nowhere/at/all"},
            "NOMBA_CLIENT_SECRET_FILE",
        ),
    ],
)
def test_a_wrong_credential_names_the_environment_as_its_origin(environ, key):
    assert problems(settings, **environ)[key].origin.startswith("environment")


def test_a_config_that_cannot_be_read_is_named():
    for found in (
        problem(settings, "/nowhere/proxy.toml"),
        problem(settings, NOMBA_PROXY_CONFIG="/nowhere/proxy.toml"),
    ):
        assert (found.key, found.origin) == ("config", "/nowhere/proxy.toml")


@pytest.mark.parametrize("content", ["listen =", "[log", "a = 1\na = 2"])
def test_a_config_that_is_no_toml_is_named(write, content):
    file = write(content)
    found = problem(settings, file)
    assert (found.key, found.origin) == ("config", file)


def test_a_config_that_is_no_text_is_named(tmp_path):
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    assert problem(settings, str(tmp_path / "x.toml")).key == "config"


@pytest.mark.parametrize(
    "content",
    [
        'upstream = "x"',
        "upstream = 1",
        'upstream = ["x"]',
        '[upstream]\nname = "x"',
        'log = "json"',
        "[log]\nlevel = [1]",
        "admin = []",
        "listen = 8080",
    ],
)
def test_a_config_of_the_wrong_shape_is_a_problem_and_no_crash(write, content):
    assert problems(settings, write(content), NOMBA_PROXY_LOG_FORMAT="json", **SANDBOX)


def test_an_empty_list_of_upstreams_is_no_crash(write):
    loaded = settings(write("upstream = []"), **SANDBOX)
    assert upstream(loaded).origin.environment == "sandbox"


# -- unknown keys ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "key", "near"),
    [
        ('lisen = "127.0.0.1:1"', "lisen", "listen"),
        ('[log]\nlevle = "info"', "log.levle", "log.level"),
        ('[[upstream]]\nbase_ulr = "x"', "upstream.0.base_ulr", "upstream.base_url"),
        ('[calers]\nanonymous = "auto"', "calers", "callers"),
    ],
)
def test_an_unknown_key_in_the_file_is_an_error_with_the_nearest_key(write, content, key, near):
    file = write(content)
    found = problem(settings, file)
    assert (found.key, found.origin) == (key, f"file {file}")
    assert near in found.hint


def test_an_unknown_variable_is_a_warning_with_the_nearest_name():
    (warning,) = settings(NOMBA_PROXY_LISTN="127.0.0.1:1").warnings
    assert "NOMBA_PROXY_LISTN " in warning
    assert "NOMBA_PROXY_LISTEN?" in warning


def test_an_unknown_variable_does_not_print_its_value():
    (warning,) = settings(NOMBA_PROXY_CLIENT_SECRET=SECRET).warnings
    assert SECRET not in warning


@pytest.mark.parametrize(
    "name",
    [
        "NOMBA_PROXY_PORT",
        "NOMBA_PROXY_PORT_8080_TCP",
        "NOMBA_PROXY_PORT_8080_TCP_ADDR",
        "NOMBA_PROXY_SERVICE_HOST",
        "NOMBA_PROXY_SERVICE_PORT",
        "NOMBA_PROXY_SERVICE_PORT_HTTP",
        "NOMBA_WEBHOOK_SECRET",
        "NOMBA_SUB_ACCOUNT_ID",
        "PATH",
    ],
)
def test_names_that_kubernetes_or_others_set_are_ignored(name):
    assert settings(**{name: "tcp://10.0.0.1:8080"}).warnings == ()


@pytest.mark.parametrize(
    "name", ["NOMBA_PROXY_PORTS", "NOMBA_PROXY_PORTABLE", "NOMBA_PROXY_SERVICES"]
)
def test_a_name_that_only_resembles_those_of_kubernetes_is_a_warning(name):
    assert len(settings(**{name: "1"}).warnings) == 1


def test_an_unknown_flag_is_an_error_with_the_nearest_key():
    found = problem(settings, flags={"log.levl": "debug"})
    assert (found.origin, found.hint) == ("flag", "Did you mean log.level?")


# -- credentials -----------------------------------------------------------------------


def test_missing_credentials_say_what_to_set_and_what_to_try():
    text = "\n".join(map(str, problems(bare).values()))
    for name in ("NOMBA_CLIENT_ID", "NOMBA_CLIENT_SECRET", "NOMBA_CLIENT_SECRET_FILE"):
        assert name in text
    assert "NOMBA_ACCOUNT_ID" in text
    assert "--simulate" in text


@pytest.mark.parametrize("name", CREDENTIALS)
@pytest.mark.parametrize("value", [None, ""])
def test_one_missing_credential_is_the_one_that_is_named(name, value):
    found = problem(settings, **{name: value})
    assert found.key == name
    assert found.hint


def test_a_verb_that_needs_no_credentials_asks_for_none():
    assert upstream(bare(credentials=False)).client_id == ""


@pytest.mark.parametrize(
    ("alias", "name"),
    [("NOMBA_PRIVATE_KEY", "NOMBA_CLIENT_SECRET"), ("NOMBA_PARENT_ACCOUNT_ID", "NOMBA_ACCOUNT_ID")],
)
def test_an_alias_stands_for_its_variable(write, alias, name):
    value = CREDENTIALS[name]
    key = {"NOMBA_CLIENT_SECRET": "client_secret", "NOMBA_ACCOUNT_ID": "account_id"}[name]
    for environ in ({alias: value}, {f"{alias}_FILE": write(value, "value")}):
        loaded = settings(**{name: None, **environ})
        assert reveal(loaded) == SECRET
        assert upstream(loaded).account_id == CREDENTIALS["NOMBA_ACCOUNT_ID"]
    assert (
        shown(settings(**{name: None, alias: value}))[f"upstream.0.{key}"][1]
        == f"environment {alias}"
    )


def test_an_alias_that_differs_is_a_problem_and_one_that_agrees_is_none():
    assert problem(settings, NOMBA_PRIVATE_KEY="other").key == "NOMBA_CLIENT_SECRET"
    assert reveal(settings(NOMBA_PRIVATE_KEY=SECRET)) == SECRET


@pytest.mark.parametrize("name", CREDENTIALS)
def test_every_credential_can_come_from_a_file(write, name):
    loaded = settings(**{name: None, f"{name}_FILE": write(CREDENTIALS[name] + "\n", "value")})
    one = upstream(loaded)
    assert [one.client_id, reveal(loaded), one.account_id] == list(CREDENTIALS.values())
    assert not loaded.warnings


@pytest.mark.parametrize("name", CREDENTIALS)
def test_a_variable_together_with_its_file_is_an_error(write, name):
    found = problem(settings, **{f"{name}_FILE": write(CREDENTIALS[name], "value")})
    assert found.key == name
    assert f"{name}_FILE" in found.text


@pytest.mark.parametrize(
    ("content", "value"),
    [("s", "s"), ("s\n", "s"), ("s\n\n", "s\n"), (" s", " s"), ("s \n", "s "), ("a\nb\n", "a\nb")],
)
def test_exactly_one_trailing_newline_is_stripped(write, content, value):
    file = write(content, "secret")
    assert reveal(settings(NOMBA_CLIENT_SECRET=None, NOMBA_CLIENT_SECRET_FILE=file)) == value


def test_an_example_that_was_copied_is_told_where_it_still_is_one(tmp_path):
    (tmp_path / "secret").write_text("s")
    entry = '[[upstream]]\nname = "{}"\nmount = "/{}"\nenvironment = "sandbox"\naccount_id = "a"\n'
    entry += f'client_secret_file = "{tmp_path / "secret"}"\nclient_id = "{{}}"\n'
    file = tmp_path / "proxy.toml"
    file.write_text(entry.format("a", "a", "mine") + entry.format("b", "b", "…"))
    (tmp_path / "secret").chmod(0o600)
    found = problem(bare, str(file))
    assert (found.key, found.origin) == ("upstream.1.client_id", f"file {file}")
    assert "ASCII" in found.text
    assert found.hint == "Write your own where … stands."


@pytest.mark.parametrize("key", ["timeouts.total", "token.budget", "simulator.lifetime"])
def test_a_number_with_a_unit_is_told_to_have_none(key):
    found = problem(settings, flags={key: "90s"})
    assert (found.key, found.text) == (key, "must be a number")
    assert "times are seconds" in found.hint


@pytest.mark.parametrize("value", ["s ", " s", "s\n"])
def test_white_space_around_a_secret_in_the_environment_is_kept_with_a_warning(value):
    found = settings(NOMBA_CLIENT_SECRET=value)
    assert reveal(found) == value
    assert found.warnings == ("the value in NOMBA_CLIENT_SECRET begins or ends with white space",)


@pytest.mark.parametrize("content", ["s\n\n", " s", "s \n"])
def test_white_space_around_a_secret_is_kept_with_a_warning(write, content):
    file = write(content, "secret")
    (warning,) = settings(NOMBA_CLIENT_SECRET=None, NOMBA_CLIENT_SECRET_FILE=file).warnings
    assert "white space" in warning


@pytest.mark.parametrize(
    ("mode", "warned"), [(0o600, 0), (0o400, 0), (0o640, 0), (0o644, 1), (0o604, 1)]
)
def test_a_secret_file_that_everybody_can_read_is_a_warning(write, mode, warned):
    file = write(SECRET, "secret", mode)
    warnings = settings(NOMBA_CLIENT_SECRET=None, NOMBA_CLIENT_SECRET_FILE=file).warnings
    assert len(warnings) == warned
    assert all(f"chmod 600 {file}" in one for one in warnings)


@pytest.mark.parametrize("content", ["", "\n", None, b"\xff\xfe"])
def test_a_secret_file_that_holds_no_secret_is_a_problem(tmp_path, content):
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    found = problem(settings, NOMBA_CLIENT_SECRET=None, NOMBA_CLIENT_SECRET_FILE=str(file))
    assert str(file) in found.text


def test_a_secret_file_can_be_a_symbolic_link(write, tmp_path):
    (tmp_path / "link").symlink_to(write(SECRET, "target"))
    loaded = settings(NOMBA_CLIENT_SECRET=None, NOMBA_CLIENT_SECRET_FILE=str(tmp_path / "link"))
    assert reveal(loaded) == SECRET


def test_credentials_can_come_from_the_credentials_directory(write, tmp_path):
    for name, value in CREDENTIALS.items():
        write(value + "\n", name)
    loaded = bare(CREDENTIALS_DIRECTORY=str(tmp_path))
    assert reveal(loaded) == SECRET
    assert shown(loaded)["upstream.0.client_id"][1] == "credential NOMBA_CLIENT_ID"


def test_the_environment_beats_the_credentials_directory(write, tmp_path):
    write("from-the-directory", "NOMBA_CLIENT_ID")
    loaded = settings(CREDENTIALS_DIRECTORY=str(tmp_path))
    assert upstream(loaded).client_id == CREDENTIALS["NOMBA_CLIENT_ID"]


def test_a_secret_is_pinned_to_its_upstreams_origin():
    secret = upstream(settings(**SANDBOX)).client_secret
    assert secret.reveal(to="https://sandbox.nomba.com") == SECRET
    with pytest.raises(SecretMisuse):
        secret.reveal(to=PRODUCTION)


@pytest.mark.parametrize(
    "flag",
    [
        "upstream.0.client_secret",
        "client_secret",
        "NOMBA_CLIENT_SECRET",
        "upstream.0.private_key",
        "upstream.client_secret",
    ],
)
def test_a_secret_is_never_taken_from_a_flag(flag):
    assert problem(settings, flags={flag: SECRET}, NOMBA_CLIENT_SECRET="x").origin == "flag"


@pytest.mark.parametrize(
    "content",
    [
        'client_secret = "{}"',
        '[[upstream]]\nclient_secret = "{}"',
        '[[upstream]]\nname = "a"\nclient_secret = "{}"',
    ],
)
def test_a_secret_is_never_taken_from_the_settings_file(write, content):
    found = problem(settings, write(content.format(SECRET)), NOMBA_CLIENT_SECRET="x")
    assert "secret" in found.text
    assert "client_secret_file" in found.hint


def test_no_output_holds_the_secret(write):
    loaded = settings(write('[[upstream]]\naccount_allow = ["other-0123456789"]'), **SANDBOX)
    rows = describe(loaded)
    assert SECRET not in json.dumps(rows) + repr(loaded) + str(loaded) + repr(loaded.upstreams)
    assert ("upstream.0.client_secret", "***", "environment NOMBA_CLIENT_SECRET") in rows


def test_identifiers_are_described_masked(write):
    loaded = settings(write('[[upstream]]\naccount_allow = ["other-0123456789"]'))
    text = json.dumps(describe(loaded))
    for one in (
        CREDENTIALS["NOMBA_CLIENT_ID"],
        CREDENTIALS["NOMBA_ACCOUNT_ID"],
        "other-0123456789",
    ):
        assert one not in text


@pytest.mark.parametrize(
    "url",
    [
        f"https://user:{SECRET}@api.nomba.com",
        f"https://user:{SECRET}@api.nomba.com:x",
        f"https://user:{SECRET}@[api.nomba.com",
        f"https://api.nomba.com/?key={SECRET}",
        f"ftp://{SECRET}@api.nomba.com",
    ],
)
def test_a_url_with_a_secret_in_it_is_refused_without_repeating_it(url):
    assert (
        problem(settings, NOMBA_BASE_URL=url, NOMBA_CLIENT_SECRET="x").key == "upstream.0.base_url"
    )


# -- where the upstream is -------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "origin", "environment"),
    [
        ({}, PRODUCTION, "production"),
        ({"NOMBA_ENVIRONMENT": "production"}, PRODUCTION, "production"),
        ({"NOMBA_ENVIRONMENT": "sandbox"}, "https://sandbox.nomba.com", "sandbox"),
        ({"NOMBA_BASE_URL": "https://API.nomba.com:443/"}, PRODUCTION, "production"),
        ({"NOMBA_BASE_URL": "https://sandbox.nomba.com."}, "https://sandbox.nomba.com", "sandbox"),
        ({"NOMBA_BASE_URL": "http://127.0.0.1:9000"}, "http://127.0.0.1:9000", "loopback"),
        ({"NOMBA_BASE_URL": "http://[::1]:9000"}, "http://[::1]:9000", "loopback"),
        ({"NOMBA_BASE_URL": "http://localhost"}, "http://localhost", "loopback"),
        (
            {"NOMBA_BASE_URL": "https://nomba.internal:8443"},
            "https://nomba.internal:8443",
            "custom",
        ),
        (
            {"NOMBA_BASE_URL": PRODUCTION, "NOMBA_ENVIRONMENT": "production"},
            PRODUCTION,
            "production",
        ),
    ],
)
def test_an_origin_is_read_in_one_spelling(environ, origin, environment):
    one = upstream(settings(**environ)).origin
    assert (one.text, one.environment) == (origin, environment)


@pytest.mark.parametrize(
    ("text", "authority", "port"),
    [
        ("https://api.nomba.com", "api.nomba.com", 443),
        ("http://localhost:80", "localhost", 80),
        ("https://x.example:444", "x.example:444", 444),
        ("http://[::1]:81", "[::1]:81", 81),
    ],
)
def test_the_authority_leaves_out_a_default_port(text, authority, port):
    origin = parse_origin(text)
    assert (origin.authority, origin.port) == (authority, port)


@pytest.mark.parametrize(
    "host", ["sandbox.api.nomba.com", "api.sandbox.nomba.com", "API.Sandbox.Nomba.com."]
)
@pytest.mark.parametrize("rest", ["", "/", "/v1", ":443"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_wrong_sandbox_hosts_are_refused_and_the_right_one_is_named(host, rest, scheme):
    assert (
        "https://sandbox.nomba.com"
        in problem(settings, NOMBA_BASE_URL=f"{scheme}://{host}{rest}").text
    )


@pytest.mark.parametrize(
    "url",
    [
        "http://api.nomba.com",
        "http://sandbox.nomba.com",
        "http://10.0.0.1",
        "http://0.0.0.0:80",
        "http://127.0.0.1.evil.example",
        "http://localhost.evil.example",
    ],
)
def test_plain_http_is_for_loopback_only(url):
    assert "loopback" in problem(settings, NOMBA_BASE_URL=url).text


@pytest.mark.parametrize(
    "url",
    ["", "api.nomba.com", "//api.nomba.com", "https://", "ftp://api.nomba.com", "https://x:99999"],
)
def test_what_is_no_origin_is_refused(url):
    with pytest.raises(ValueError):
        parse_origin(url)


@pytest.mark.parametrize(
    "host",
    ["a b", "a%20b", "a<b", "a\x00b", "*.nomba.com", "api.nomba.com%2fx"],
)
def test_a_host_that_is_no_host_name_is_refused(host):
    with pytest.raises(ValueError):
        parse_origin(f"https://{host}")


def test_a_host_beyond_ascii_goes_out_as_ascii_or_not_at_all():
    try:
        origin = parse_origin("https://bücher.example")
    except ValueError:
        return
    assert origin.authority.isascii()


@pytest.mark.parametrize("tail", ["/v1", "/v1/", "?a=1", "#x", "/;x"])
def test_an_origin_has_no_path(tail):
    assert "origin only" in problem(settings, NOMBA_BASE_URL=PRODUCTION + tail).text


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ("sandbox", PRODUCTION),
        ("production", "https://sandbox.nomba.com"),
        ("production", "http://127.0.0.1:9000"),
        ("sandbox", "https://nomba.internal"),
    ],
)
def test_an_environment_that_contradicts_the_base_url_is_refused(environment, url):
    found = problem(settings, NOMBA_ENVIRONMENT=environment, NOMBA_BASE_URL=url)
    assert found.origin == "environment NOMBA_ENVIRONMENT"
    assert url in found.text


def test_an_empty_base_url_does_not_turn_a_sandbox_into_production(write):
    file = write('[[upstream]]\nbase_url = "https://sandbox.nomba.com"')
    try:
        loaded = settings(file, NOMBA_BASE_URL="")
    except SettingsError:
        return
    assert upstream(loaded).origin.environment == "sandbox"


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        ("127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("127.0.0.1:8080", "http://localhost:8080"),
        ("[::1]:8080", "http://localhost:8080"),
        ("localhost:8080", "http://127.0.0.1:8080"),
        ("localhost:8080", "http://[::1]:8080"),
        ("127.0.0.1:80", "http://127.0.0.1"),
    ],
)
def test_an_upstream_that_is_the_proxy_itself_is_refused(listen, url):
    environ = {"NOMBA_PROXY_LISTEN": listen, "NOMBA_PROXY_CALLERS_ANONYMOUS": "false"}
    assert "itself" in problem(settings, NOMBA_BASE_URL=url, **environ).text


# -- who may call ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("anonymous", "url", "open_door"),
    [
        ("auto", "http://127.0.0.1:9000", True),
        ("auto", "https://sandbox.nomba.com", True),
        ("auto", PRODUCTION, False),
        ("auto", "https://nomba.internal", False),
        ("true", PRODUCTION, True),
        ("true", "https://nomba.internal", True),
        ("false", "https://sandbox.nomba.com", False),
        ("false", "http://127.0.0.1:9000", False),
    ],
)
def test_anonymous_callers_are_a_default_for_loopback_and_sandbox_only(anonymous, url, open_door):
    loaded = settings(NOMBA_BASE_URL=url, NOMBA_PROXY_CALLERS_ANONYMOUS=anonymous)
    assert upstream(loaded).anonymous is open_door


@pytest.mark.parametrize(
    ("url", "warned"),
    [(PRODUCTION, True), ("https://nomba.internal", True), ("https://sandbox.nomba.com", False)],
)
def test_anonymous_production_is_a_warning_that_names_the_origin(url, warned):
    warnings = settings(NOMBA_BASE_URL=url, NOMBA_PROXY_CALLERS_ANONYMOUS="true").warnings
    assert [url in one for one in warnings] == [True] * warned


NOT_LOOPBACK = ["0.0.0.0:8080", "[::]:8080", "192.168.1.5:8080", "proxy.internal:8080"]


@pytest.fixture
def callers(tmp_path):
    """A callers file with one caller in it."""
    secret = Digest.of("x", salt="0" * 16)
    path = tmp_path / "callers.toml"
    path.write_text(f'[[caller]]\nname = "app"\nsecrets = ["{secret}"]\n')
    return {"NOMBA_PROXY_CALLERS_FILE": str(path)}


@pytest.mark.parametrize("listen", NOT_LOOPBACK)
@pytest.mark.parametrize(
    "environ",
    [
        {"NOMBA_PROXY_CALLERS_ANONYMOUS": "true"},
        {"NOMBA_PROXY_SIMULATE": "true", "NOMBA_PROXY_CALLERS_ANONYMOUS": "true"},
    ],
)
def test_an_open_door_to_other_machines_is_refused(listen, environ, callers):
    private = {"NOMBA_PROXY_INSECURE_PLAIN_HTTP": "true"}
    found = problem(settings, NOMBA_PROXY_LISTEN=listen, **environ, **private, **callers)
    assert found.key == "listen"
    assert "callers.anonymous" in found.hint


@pytest.mark.parametrize("listen", NOT_LOOPBACK)
@pytest.mark.parametrize("environ", [{}, SANDBOX, {"NOMBA_PROXY_SIMULATE": "true"}])
def test_a_listener_for_other_machines_needs_callers_and_says_that_it_is_not_encrypted(
    listen, environ, callers
):
    environ = environ | {"NOMBA_PROXY_LISTEN": listen}
    private = {"NOMBA_PROXY_INSECURE_PLAIN_HTTP": "true"}
    assert "caller add" in problem(settings, **environ, **private).hint
    assert "insecure_plain_http" in problem(settings, **environ, **callers).hint
    loaded = settings(**environ, **private, **callers)
    assert [str(one) for one in loaded.listen] == [listen]
    assert not loaded.simulated_anonymous
    assert not any(one.anonymous for one in loaded.upstreams)  # `auto` is for this machine


@pytest.mark.parametrize(
    ("known_by", "enough"),
    [('certificates = ["dns:app"]', True), ("uids = [7]", False), ("", True)],
)
def test_a_caller_that_is_known_by_uid_alone_cannot_come_from_another_machine(
    write, known_by, enough
):
    file = write(f'[[caller]]\nname = "app"\n{known_by}\n')
    environ = {"NOMBA_PROXY_LISTEN": NOT_LOOPBACK[0], "NOMBA_PROXY_INSECURE_PLAIN_HTTP": "true"}
    if enough:
        assert not settings(file, **environ).local
    else:
        assert "known by uid alone" in problem(settings, file, **environ).text


def test_one_open_upstream_among_several_closes_the_listener(write):
    file = write(several(write, 'environment = "production"', 'environment = "sandbox"'))
    more = {"NOMBA_PROXY_CALLERS_ANONYMOUS": "true", "NOMBA_PROXY_INSECURE_PLAIN_HTTP": "true"}
    assert problem(bare, file, NOMBA_PROXY_LISTEN="0.0.0.0:8080", **more).key == "listen"


@pytest.mark.parametrize("listen", ["https://127.0.0.1:9091", "fd:3", "unix://x", "9091", ""])
def test_an_admin_listener_is_tcp_or_a_unix_socket(listen):
    found = problem(settings, NOMBA_PROXY_ADMIN_LISTEN=listen)
    assert (found.key, found.origin) == ("admin.listen", "environment NOMBA_PROXY_ADMIN_LISTEN")


@pytest.mark.parametrize("listen", ["0.0.0.0:9091", "unix:///run/admin.sock?mode=0660"])
def test_an_admin_listener_may_be_elsewhere(listen):
    loaded = settings(NOMBA_PROXY_ADMIN_LISTEN=listen)
    assert str(loaded.admin_listen) == listen.partition("?")[0]


def test_an_admin_listener_that_no_operator_can_use_is_a_warning():
    elsewhere = {"NOMBA_PROXY_ADMIN_LISTEN": "0.0.0.0:9091"}
    (found,) = settings(**elsewhere).warnings
    assert "admin.token_file" in found
    assert settings(**elsewhere, NOMBA_PROXY_ADMIN_TOKEN="y" * 40).warnings == ()
    assert settings(NOMBA_PROXY_ADMIN_LISTEN="unix:///run/admin.sock").warnings == ()
    assert settings().warnings == ()


@pytest.mark.parametrize("token", ["short", "x" * 31, "two words " * 9, "ü" * 40])
def test_a_token_of_the_admin_listener_is_hard_to_guess(token):
    found = problem(settings, NOMBA_PROXY_ADMIN_TOKEN=token)
    assert found.key == "admin.token_file"
    assert token not in str(found)


def test_the_token_of_the_admin_listener_comes_from_a_file_too(tmp_path):
    (tmp_path / "token").write_text("y" * 40 + "\n")
    (tmp_path / "token").chmod(0o600)
    loaded = settings(NOMBA_PROXY_ADMIN_TOKEN_FILE=str(tmp_path / "token"))
    assert loaded.admin_token.holds("y" * 40)
    assert "y" * 40 not in repr(loaded)
    both = {"NOMBA_PROXY_ADMIN_TOKEN": "z" * 40}
    env = both | {"NOMBA_PROXY_ADMIN_TOKEN_FILE": str(tmp_path / "token")}
    assert "together" in problem(settings, **env).text


def test_both_listeners_on_one_address_are_refused():
    assert problem(settings, NOMBA_PROXY_ADMIN_LISTEN="127.0.0.1:8080").key == "admin.listen"


def test_both_listeners_may_take_any_port():
    loaded = settings(NOMBA_PROXY_LISTEN="127.0.0.1:0", NOMBA_PROXY_ADMIN_LISTEN="127.0.0.1:0")
    assert [one.at for one in loaded.listen] == [loaded.admin_listen]


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080, True),
        ("127.8.8.8:0", "127.8.8.8", 0, True),
        ("localhost:65535", "localhost", 65535, True),
        ("[::1]:80", "::1", 80, True),
        ("0.0.0.0:80", "0.0.0.0", 80, False),
        ("[::]:80", "::", 80, False),
        ("localhost.evil.example:80", "localhost.evil.example", 80, False),
    ],
)
def test_an_address_is_read_and_printed_alike(text, host, port, loopback):
    address = parse_address(text)
    assert (address.host, address.port, address.loopback) == (host, port, loopback)
    assert str(address) == text


@pytest.mark.parametrize(
    "text", ["", "8080", ":8080", "a", "a:", "a:-1", "a:x", "a:65536", "::1:80", "a:1:2"]
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ValueError):
        parse_address(text)


# -- several upstreams -----------------------------------------------------------------


def several(write, *entries):
    """One `[[upstream]]` for each entry, complete but for what the entry adds."""
    secret = write(SECRET, "secret")
    toml = ""
    for at, entry in enumerate(entries):
        keys = {
            "name": f"n{at}",
            "mount": f"/m{at}",
            "client_id": f"client-{at}",
            "account_id": f"account-{at}",
            "client_secret_file": secret,
        }
        lines = [f'{key} = "{value}"' for key, value in keys.items() if f"{key} =" not in entry]
        toml += "\n".join(["[[upstream]]", *lines, entry, ""])
    return toml


def test_several_upstreams_each_have_their_own_credentials(write):
    loaded = bare(write(several(write, "", 'environment = "sandbox"')))
    assert [(one.name, one.mount, one.client_id) for one in loaded.upstreams] == [
        ("n0", "/m0", "client-0"),
        ("n1", "/m1", "client-1"),
    ]
    assert [one.origin.environment for one in loaded.upstreams] == ["production", "sandbox"]


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ('name = "n0"', "name"),
        ('mount = "/m0"', "mount"),
        ('mount = "/m0/"', "mount"),
        ('client_id = "client-0"\nsession_scope = "account"', "client_id .*another session_scope"),
    ],
)
def test_two_upstreams_may_not_share_a_name_or_a_mount_nor_differ_on_a_session(write, entry, what):
    found = problem(bare, write(several(write, "", entry)))
    assert re.search(f"same .*{what}", found.text)


def sessions(loaded):
    """Which upstreams share a session, in order."""
    found = {}
    for one in loaded.upstreams:
        found.setdefault(one.session, []).append(one.name)
    return list(found.values())


CLIENT = 'client_id = "client-0"'
BY_ACCOUNT = f'{CLIENT}\nsession_scope = "account"'


@pytest.mark.parametrize(
    ("entries", "shared"),
    [
        ([CLIENT, CLIENT, ""], [["n0", "n1"], ["n2"]]),
        ([CLIENT, f'{CLIENT}\naccount_id = "account-0"'], [["n0", "n1"]]),
        ([BY_ACCOUNT, BY_ACCOUNT], [["n0"], ["n1"]]),
        (
            [BY_ACCOUNT, BY_ACCOUNT, f'{BY_ACCOUNT}\naccount_id = "ACCOUNT-0"'],
            [["n0", "n2"], ["n1"]],
        ),
        ([CLIENT, f'{CLIENT}\nenvironment = "sandbox"'], [["n0"], ["n1"]]),
        ([CLIENT, f'{BY_ACCOUNT}\nenvironment = "sandbox"'], [["n0"], ["n1"]]),
    ],
)
def test_a_session_is_shared_by_the_upstreams_of_one_client(write, entries, shared):
    assert sessions(bare(write(several(write, *entries)))) == shared


@pytest.mark.parametrize("scope", [CLIENT, f'{BY_ACCOUNT}\naccount_id = "one"'])
def test_upstreams_that_share_a_session_have_one_secret(write, scope):
    other = f'client_secret_file = "{write("another-secret-0123456789", "other")}"'
    found = problem(bare, write(several(write, scope, "", f"{scope}\n{other}")))
    assert found.key == "upstream n2"
    assert "session of n0" in found.text
    assert "another-secret" not in str(found)


def test_sessions_of_two_accounts_may_have_two_secrets(write):
    other = f'client_secret_file = "{write("another-secret-0123456789", "other")}"'
    loaded = bare(write(several(write, BY_ACCOUNT, f"{BY_ACCOUNT}\n{other}")))
    assert len(loaded.upstreams) == 2


def test_hosts_are_kept_in_one_spelling(write):
    entry = 'hosts = ["Live.Localhost", "live.localhost.", "::0001", "10.0.0.1", "a_b-c"]'
    loaded = bare(write(several(write, entry, 'hosts = ["x.example"]')))
    assert loaded.upstreams[0].hosts == {"live.localhost", "::1", "10.0.0.1", "a_b-c"}
    assert loaded.hosts == loaded.upstreams[0].hosts | {"x.example"}
    rows = shown(loaded)
    assert rows["upstream.0.hosts"][0] == "10.0.0.1, ::1, a_b-c, live.localhost"
    assert rows["upstream.0.strip_mount"] == ("true", "default")
    assert rows["upstream.1.session_scope"] == ("client", "default")


def test_hosts_and_the_rest_are_set_in_the_environment_too():
    env = {"HOSTS": "a.example, b.example", "STRIP_MOUNT": "false", "SESSION_SCOPE": "account"}
    loaded = settings(**{f"NOMBA_PROXY_UPSTREAM_{name}": value for name, value in env.items()})
    one = upstream(loaded)
    assert one.hosts == {"a.example", "b.example"}
    assert (one.options.strip_mount, one.options.session_scope) == (False, "account")


@pytest.mark.parametrize(
    "host",
    [
        *("", "a b", "a:80", "http://a", "a/b", "*.a", "-a", "a-", "a..b", ".a", "é", "\u212a"),
        *("[::1]", "[::1]:80", "::1::", "a@b", "x" * 64, ".".join(["x" * 63] * 5)),
    ],
)
def test_a_host_is_a_name_without_port(write, host):
    found = problem(bare, write(several(write, f"hosts = [{json.dumps(host)}]", "")))
    assert (found.key, "live.localhost" in found.hint) == ("upstream.0.hosts", True)
    simulated = f"simulate = true\n[[upstream]]\nhosts = [{json.dumps(host)}]"
    assert problem(bare, write(simulated)).key == "upstream.0.hosts"


def test_a_mount_is_taken_once_for_each_host(write):
    a, b = 'mount = "/"\nhosts = ["a.x", "c.x"]', 'mount = "/"\nhosts = ["b.x"]'
    assert len(bare(write(several(write, a, b, 'mount = "/"'))).upstreams) == 3
    found = problem(bare, write(several(write, a, 'mount = ""\nhosts = ["b.x", "C.x", "A.x."]')))
    assert (found.key, "for a.x, c.x" in found.text) == ("upstream n1", True)


def test_everything_that_is_wrong_with_several_upstreams_is_told_at_once(write):
    other = f'client_secret_file = "{write("another-secret-0123456789", "other")}"'
    entries = [CLIENT, f"{CLIENT}\n{other}", 'hosts = ["a:1"]', 'mount = "/m0"', BY_ACCOUNT]
    found = problems(bare, write(several(write, *entries)))
    assert set(found) == {"upstream n1", "upstream.2.hosts", "upstream n3", "upstream n4"}


def test_one_client_may_serve_two_origins(write):
    loaded = bare(write(several(write, "", 'client_id = "client-0"\nenvironment = "sandbox"')))
    assert len(loaded.upstreams) == 2


def test_shared_credentials_for_several_upstreams_are_ambiguous(write):
    found = problem(settings, write(several(write, "", "")))
    assert "NOMBA_CLIENT_SECRET" in found.key
    assert "[[upstream]]" in found.hint


@pytest.mark.parametrize("flags", [{}, {"upstream.0.base_url": "https://sandbox.nomba.com"}])
def test_one_base_url_for_several_upstreams_is_ambiguous(write, flags):
    environ = {} if flags else {"NOMBA_BASE_URL": "https://sandbox.nomba.com"}
    found = problem(bare, write(several(write, "", "")), flags=flags, **environ)
    assert "ambiguous" in found.text


def test_every_upstream_without_credentials_is_named(write):
    secret = write(SECRET, "secret")
    half = f'[[upstream]]\nname = "{{0}}"\nmount = "/{{0}}"\nclient_secret_file = "{secret}"\n'
    ids = 'client_id = "client-{0}"\n'
    file = write("".join((half + ids).format(one) for one in "ab"))
    with pytest.raises(SettingsError) as caught:
        bare(file)
    text = str(caught.value)
    assert "upstream.0.account_id" in text
    assert "upstream.1.account_id" in text


@pytest.mark.parametrize(
    "mount", ["nomba", "/a b", "/a?b", "/a#b", "/a;b", "/%61", "/a//b", "/..", "/a/./b", "/é"]
)
def test_a_mount_is_a_plain_path_prefix(write, mount):
    file = write(f'[[upstream]]\nmount = "{mount}"')
    assert problem(settings, file).key == "upstream.0.mount"


@pytest.mark.parametrize(
    ("mount", "prefix"),
    [("/", ""), ("", ""), ("/nomba", "/nomba"), ("/nomba/", "/nomba"), ("/a/b", "/a/b")],
)
def test_a_mount_is_kept_without_its_trailing_slash(write, mount, prefix):
    assert upstream(settings(write(f'[[upstream]]\nmount = "{mount}"'))).mount == prefix


def test_allowed_accounts_are_a_list_in_the_file_and_comma_separated_elsewhere(write):
    file = write('[[upstream]]\naccount_allow = ["a", "b"]')
    assert upstream(settings(file)).options.account_allow == ("a", "b")
    loaded = settings(file, NOMBA_PROXY_UPSTREAM_ACCOUNT_ALLOW=" c, d ,,")
    assert upstream(loaded).options.account_allow == ("c", "d")


# -- the simulator ---------------------------------------------------------------------


@pytest.mark.parametrize("value", ["true", "auto"])
def test_the_simulator_needs_no_credentials(value):
    loaded = bare(flags={"simulate": value})
    assert loaded.simulate
    assert loaded.upstreams == ()


@pytest.mark.parametrize(
    ("value", "simulated"), [("true", True), ("false", False), ("auto", False), (None, False)]
)
def test_with_credentials_only_true_simulates(value, simulated):
    loaded = settings(flags={} if value is None else {"simulate": value})
    assert loaded.simulate is simulated
    assert bool(loaded.upstreams) is not simulated


@pytest.mark.parametrize("value", ["false", None])
def test_without_credentials_nothing_is_simulated_unless_it_is_asked_for(value):
    assert len(problems(bare, flags={} if value is None else {"simulate": value})) == 3


@pytest.mark.parametrize(
    "name",
    ["NOMBA_CLIENT_ID", "NOMBA_PRIVATE_KEY", "NOMBA_CLIENT_SECRET_FILE"],
)
def test_auto_does_not_simulate_over_half_a_set_of_credentials(name):
    assert problems(bare, flags={"simulate": "auto"}, **{name: "/nowhere"})


def test_auto_sees_credentials_in_the_credentials_directory(write, tmp_path):
    write("client-0123456789", "NOMBA_CLIENT_ID")
    found = problems(bare, flags={"simulate": "auto"}, CREDENTIALS_DIRECTORY=str(tmp_path))
    assert set(found) == {"NOMBA_CLIENT_SECRET", "NOMBA_ACCOUNT_ID"}


def test_auto_sees_credentials_in_the_settings_file(write):
    file = write('[[upstream]]\nclient_id = "client-0123456789"')
    assert "NOMBA_CLIENT_ID" not in problems(bare, file, flags={"simulate": "auto"})


def test_describe_names_what_acts_on_the_simulator():
    flags = {"simulate": "true", "upstream.0.account_policy": "fill"}
    rows = shown(settings(flags=flags))
    assert rows["simulate"] == ("true", "flag")
    assert rows["upstream.0.account_policy"] == ("fill", "flag")
    assert rows["upstream.0.account_id"][1] == "environment NOMBA_ACCOUNT_ID"
    assert CREDENTIALS["NOMBA_ACCOUNT_ID"] not in str(rows)
    assert "upstream.0.base_url" not in rows


def test_the_simulator_stands_in_for_the_account_that_is_set(write):
    file = write('[[upstream]]\naccount_id = "from-file"')
    auto = {"simulate": "auto"}
    assert bare(flags=auto).simulated == {}
    assert bare(file, flags=auto).simulated["account_id"] == "from-file"
    assert bare(file, flags=auto, NOMBA_ACCOUNT_ID="from-env").simulated["account_id"] == "from-env"
    flags = auto | {"upstream.0.account_id": "from-flag"}
    assert bare(file, flags=flags, NOMBA_ACCOUNT_ID="e").simulated["account_id"] == "from-flag"
    found = problem(bare, write('[[upstream]]\naccount_id = "a b"'), flags=auto)
    assert (found.key, found.origin.startswith("file")) == ("upstream.0.account_id", True)


def test_the_simulator_takes_an_apps_own_credentials_and_needs_none(write):
    simulate = {"NOMBA_PROXY_SIMULATE": "true"}
    loaded = settings(**simulate)
    assert loaded.simulated["client_id"] == CREDENTIALS["NOMBA_CLIENT_ID"]
    assert loaded.simulated_secret.holds(SECRET)
    assert SECRET not in repr(loaded) + str(describe(loaded))
    own = simulate | {
        "NOMBA_PROXY_SIMULATOR_CLIENT_ID": "x",
        "NOMBA_PROXY_SIMULATOR_CLIENT_SECRET": "y",
    }
    loaded = settings(**own)
    assert ("client_id" in loaded.simulated, loaded.simulated_secret) == (False, None)
    gone = {"NOMBA_CLIENT_SECRET": None, "NOMBA_CLIENT_SECRET_FILE": "/none"}
    assert settings(**simulate, **gone).simulated_secret is None


def test_the_simulator_is_told_by_flag_environment_and_file(write):
    file = write('[simulator]\nlifetime = 60\nexpired_as = "500"\nfaults = ["stall", "delay"]')
    env = {
        "NOMBA_PROXY_SIMULATOR_LIFETIME": "90",
        "NOMBA_PROXY_SIMULATOR_OTHER_CLIENTS": "a:b, c:d",
    }
    env["NOMBA_PROXY_SIMULATOR_CLIENT_SECRET"] = "marked-secret"
    flags = {"simulate": "true", "simulator.seed": "7", "simulator.listen": "127.0.0.1:1"}
    loaded = bare(file, flags=flags, **env)
    options = loaded.model.simulator
    switches = options.switches()
    assert (switches["lifetime"], switches["expired_as"], options.seed) == (90, "500", 7)
    assert switches["other_clients"] == ("a:b", "c:d")
    assert options.faults == ("stall", "delay")
    assert str(loaded.simulator_listen) == "127.0.0.1:1"
    assert loaded.simulator_control_listen is None
    rows = shown(loaded)
    assert rows["simulator.faults"] == ("stall; delay", f"file {file}")
    assert rows["simulator.state_file"] == ("", "default")
    assert rows["simulator.client_secret"][0] == rows["simulator.other_clients"][0] == "***"
    assert "marked" not in str(rows)


def test_faults_in_the_environment_stand_one_a_line():
    env = {"NOMBA_PROXY_SIMULATOR_FAULTS": "stall path=/a\n\n  reply body='{\"a\": [1, 2]}'\n"}
    faults = bare(flags={"simulate": "true"}, **env).model.simulator.faults
    assert faults == ("stall path=/a", "reply body='{\"a\": [1, 2]}'")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("simulator.faults", "stal", "'stal' is no fault"),
        ("simulator.expired_as", "7", "input should be '401', '500' or '200'"),
        ("simulator.listen", "x", "'x'"),
        ("simulator.control_listen", "x:y", "'x:y'"),
        ("simulator.account_id", "x", "is no setting"),
    ],
)
def test_what_the_simulator_cannot_be_told_is_a_problem(key, value, says):
    found = problem(bare, flags={"simulate": "true", key: value})
    assert (found.key, found.origin) == (key, "flag")
    assert says in found.text


# -- bodies ------------------------------------------------------------------------------


def test_a_spool_that_cannot_be_written_is_a_problem_where_it_is_needed(tmp_path):
    nowhere = {"NOMBA_PROXY_BODY_SPOOL_DIR": str(tmp_path / "nowhere")}
    found = problem(settings, **nowhere)
    assert found.key == "body.spool_dir"
    assert "No such file" in found.text
    assert settings(**nowhere, NOMBA_PROXY_BODY_LIMIT="1MiB", NOMBA_PROXY_BODY_MEMORY="1MiB")
    assert settings(NOMBA_PROXY_BODY_SPOOL_DIR=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


# -- the way to an upstream --------------------------------------------------------------


def test_the_way_to_an_upstream_is_set_by_file_and_environment(write):
    loaded = settings(NOMBA_PROXY_UPSTREAM_ADDRESSES="192.0.2.1, 192.0.2.2")
    assert upstream(loaded).options.addresses == ("192.0.2.1", "192.0.2.2")
    file = write('[[upstream]]\nconnect_proxy = "proxy.internal:3128"')
    assert upstream(settings(file)).connect_proxy == ("proxy.internal", 3128)
    assert upstream(settings()).connect_proxy is None


@pytest.mark.parametrize(
    ("text", "key", "says"),
    [
        ('addresses = ["x"]', "addresses", "'x' is no IP address"),
        ('addresses = ["::1"]\nipv4_only = true', "addresses", "::1 is IPv6, and ipv4_only is set"),
        (
            'base_url = "http://127.0.0.1:1"\naddresses = ["192.0.2.1"]',
            "addresses",
            "192.0.2.1: plain http is for loopback only",
        ),
        ('connect_proxy = "x"', "connect_proxy", "'x'"),
        (
            'base_url = "http://127.0.0.1:1"\nconnect_proxy = "x:1"',
            "connect_proxy",
            "is for https origins",
        ),
        ('addresses = ["192.0.2.1"]\nconnect_proxy = "x:1"', "connect_proxy", "dials by itself"),
        ('ipv4_only = true\nconnect_proxy = "x:1"', "connect_proxy", "dials by itself"),
    ],
)
def test_a_way_that_leads_nowhere_is_a_problem(write, text, key, says):
    found = problem(settings, write(f"[[upstream]]\n{text}"))
    assert found.key == f"upstream.0.{key}"
    assert says in found.text


@pytest.mark.parametrize("key", ["base_url", "client_secret_file", "ca_file"])
def test_an_empty_text_is_no_value(write, key):
    assert getattr(upstream(settings(write(f'[[upstream]]\n{key} = ""'))).options, key) is None


@pytest.mark.parametrize("name", ["NOMBA_ENVIRONMENT", "NOMBA_PROXY_UPSTREAM_ENVIRONMENT"])
def test_an_environment_is_folded_wherever_it_is_named(name):
    assert upstream(settings(**{name: "Sandbox"})).origin.environment == "sandbox"


def test_a_listener_on_localhost_is_loopback_in_any_case():
    assert settings(NOMBA_PROXY_LISTEN="LOCALHOST:8080").local


# -- the annotated file ----------------------------------------------------------------


def test_the_annotated_settings_file_is_valid_and_changes_nothing():
    file = Path(__file__).parents[1] / "config" / "proxy.toml"
    if not file.exists():
        pytest.skip("config/proxy.toml is not written yet")
    annotated, plain = shown(settings(str(file))), shown(settings())
    assert {key: row[0] for key, row in annotated.items()} == {
        key: row[0] for key, row in plain.items()
    }


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_ca_file_without_certificates_is_a_problem(tmp_path, content):
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    found = problem(settings, NOMBA_PROXY_UPSTREAM_CA_FILE=str(file))
    assert found.key == "upstream.0.ca_file"
    assert str(file) in found.text


@pytest.mark.parametrize("name", ["Sandbox", "SANDBOX", "sandbox"])
def test_the_environment_is_named_in_any_case(name):
    found = upstream(settings(NOMBA_ENVIRONMENT=name, NOMBA_BASE_URL=None))
    assert found.origin.environment == "sandbox"


@pytest.mark.parametrize("mount", ["//[", "//x:99999", "/["])
def test_a_mount_that_is_no_path_is_a_problem_and_no_crash(write, mount):
    assert problem(settings, write(f'[[upstream]]\nmount = "{mount}"')).key == "upstream.0.mount"


@pytest.mark.parametrize("host", ["a..b", "x" * 64, "a b", "a/b"])
def test_a_host_that_cannot_be_resolved_is_a_problem(host):
    assert problem(settings, NOMBA_PROXY_LISTEN=f"{host}:8080").key == "listen"
    assert problem(settings, NOMBA_BASE_URL=f"https://{host}").key == "upstream.0.base_url"


@pytest.mark.parametrize("text", ["a = " + "[" * 20_000, "a = " + "9" * 5000, "a = \x00"])
def test_an_absurd_file_is_a_problem_and_no_crash(tmp_path, text):
    file = tmp_path / "proxy.toml"
    file.write_text(text)
    assert "TOML" in problem(settings, str(file)).text


def test_paths_that_no_file_can_have_are_problems_and_no_crash(write):
    file = write('[[upstream]]\nclient_secret_file = "a\\u0000b"\nca_file = "a\\u0000b"')
    keys = set(problems(settings, file, NOMBA_CLIENT_SECRET=None))
    assert keys == {"upstream.0.client_secret_file", "upstream.0.ca_file"}
    with pytest.raises(SettingsError, match="NOMBA_CLIENT_ID"):
        load(environ={"CREDENTIALS_DIRECTORY": "/" + "x" * 5000})


def test_a_secret_that_is_no_text_is_a_problem():
    found = problem(settings, NOMBA_CLIENT_SECRET="a\udcff")
    assert (found.key, "UTF-8" in found.text) == ("NOMBA_CLIENT_SECRET", True)


# -- callers ----------------------------------------------------------------------------


DIGEST = str(Digest.of("x", salt="0" * 16))


@pytest.mark.parametrize(
    ("text", "key", "told"),
    [
        ("[[caller]]", "caller.0.name", "is not set"),
        ('[[caller]]\nname = "Shop"', "caller.0.name", "lower-case"),
        ('[[caller]]\nname = "a_b"', "caller.0.name", "lower-case"),
        ('[[caller]]\nname = "owner"', "caller owner", "of the proxy's own"),
        ('[[caller]]\nname = "anonymous"', "caller anonymous", "of the proxy's own"),
        ('[[caller]]\nname = "a"\n[[caller]]\nname = "a"', "caller a", "there twice"),
        ('[[caller]]\nname = "a"\nrole = "root"', "caller.0.role", "read-only"),
        ('[[caller]]\nname = "a"\nrol = "full"', "caller.0.rol", "is no setting"),
        ('[[caller]]\nname = "a"\nsecrets = ["npk_a_x"]', "caller a: secrets", "no digest"),
        (f'[[caller]]\nname = "a"\nsecrets = {[DIGEST] * 3}', "caller a: secrets", "more than two"),
        ('[[caller]]\nname = "a"\ncertificates = ["CN=a"]', "caller a: certificates", "subject:"),
        ('[[caller]]\nname = "a"\ncertificates = "dns:*.b"', "caller a: certificates", "without *"),
        ('[[caller]]\nname = "a"\ncertificates = 1', "caller.0.certificates", "must be a list"),
        ('[[caller]]\nname = "a"\nuids = 1000', "caller.0.uids", "must be a list"),
        ('[[caller]]\nname = "a"\nuids = [true]', "caller.0.uids.0", "string"),
        ('[[caller]]\nname = "a"\nuids = [65534]', "caller a: uids", "another user namespace"),
        ('[[caller]]\nname = "a"\nuids = ["nobody"]', "caller a: uids", "another user namespace"),
        ('[[caller]]\nname = "a"\nuids = [4294967295]', "caller a: uids", "end at 4294967294"),
        (f'[[caller]]\nname = "a"\nuids = ["{"9" * 5000}"]', "caller a: uids", "end at"),
        ('[[caller]]\nname = "a"\nuids = [-1]', "caller a: uids", "'-1': no user"),
        ('[[caller]]\nname = "a"\nuids = ["a\\u0000"]', "caller a: uids", "no user"),
        ('[[caller]]\nname = "a"\nrules = ["allow"]', "caller a: rules", "allow|deny"),
        ('[[caller]]\nname = "a"\nrules = "deny x"', "caller a: rules", "class:read"),
        ('[[caller]]\nname = "a"\naccounts = [""]', "caller a: accounts", "empty id"),
        ('[[caller]]\nname = "a"\nclient_secret = "x"', "caller.0.client_secret", "no setting"),
        ('[[callers]]\nname = "a"', "callers", "caller"),
        ('[caller]\nname = "a"', "caller", "[[caller]]"),
        ('caller = ["a"]', "caller.0", "[[caller]]"),
        ('[[caller]]\nname = "a"\naccounts = 1', "caller.0.accounts", "must be a list"),
        ('[[caller]]\nname = "a"\nexpires = "soon"', "caller.0.expires", "a date such as"),
        ('[[caller]]\nname = "a"\nexpires = "0001-01-01"', "caller.0.expires", "a date such as"),
        ('[[caller]]\nname = "a"\nexpires = 9999-12-31', "caller.0.expires", "a date such as"),
        ('[[caller]]\nname = "a"\nrate = 1e-320', "caller.0.rate", "at least 0.001"),
        ('[[caller]]\nname = "a"\nrate = -1', "caller.0.rate", "greater than or equal"),
        ('[[caller]]\nname = "a"\nburst = 3', "caller a: burst", "without rate"),
        ('[[caller]]\nname = "a"\nbody_limit = "x"', "caller.0.body_limit", "1MiB"),
        ("caller = 1", "caller", "[[caller]]"),
        ("anonymous = 7", "anonymous", "boolean"),
        ("= broken", "callers.file", "no valid TOML"),
    ],
)
@pytest.mark.parametrize("own", [True, False], ids=["callers file", "settings file"])
def test_what_is_wrong_with_a_caller_is_named_with_its_file(write, text, key, told, own):
    if not own and key in {"anonymous", "callers.file"}:
        return
    path = write(text, "some.toml")
    found = problem(settings, NOMBA_PROXY_CALLERS_FILE=path) if own else problem(settings, path)
    assert found.key == key
    assert told in f"{found.text} {found.hint}"
    assert found.origin == f"file {path}"


def test_users_are_listed_by_number_and_by_name(write):
    me = pwd.getpwuid(os.getuid())
    path = write(f'[[caller]]\nname = "a"\nuids = [7, "8", "{me.pw_name}"]\n')
    (caller,) = settings(path).callers.callers
    assert caller.uids == {7, 8, me.pw_uid}
    path = write('[[caller]]\nname = "a"\nuids = "7, 8"\n')
    assert settings(path).callers.callers[0].uids == {7, 8}


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        (
            'certificates = ["dns:a"]',
            'certificates = ["dns:x", "dns:A"]',
            "b: certificates: 'dns:A'",
        ),
        (
            'certificates = ["subject:CN=a, O=x"]',
            'certificates = ["subject:O=x,CN=a"]',
            "b: certificates: 'subject:O=x,CN=a' is a pattern of caller a too",
        ),
        (
            'certificates = ["subject:O=x"]',
            'certificates = ["subject:CN=a,O=x"]',
            "b: certificates: what fits 'subject:CN=a,O=x' fits 'subject:O=x' of caller a too",
        ),
        (
            'certificates = ["subject:CN=a,O=x"]',
            'certificates = ["subject:O=x"]',
            "a: certificates: what fits 'subject:CN=a,O=x' fits 'subject:O=x' of caller b too",
        ),
        ("uids = [7, 8]", 'uids = ["7"]', "b: uids: 7 is a uid of caller a too"),
    ],
)
def test_what_two_callers_are_known_by_is_a_problem(write, first, second, told):
    own = write(f'[[caller]]\nname = "a"\n{first}\n')
    other = write(f'[[caller]]\nname = "b"\n{second}\n', "callers.toml")
    found = problem(settings, own, NOMBA_PROXY_CALLERS_FILE=other)
    assert told in f"{found.key.removeprefix('caller ')}: {found.text}"
    assert found.origin == f"file {other if found.key.startswith('caller b') else own}"


def test_what_no_listener_asks_for_is_a_warning(write, tmp_path):
    file = write(
        '[[caller]]\nname = "a"\ncertificates = ["dns:a"]\n[[caller]]\nname = "b"\nuids = [7]\n'
        + "".join(f'[[caller]]\nname = "c{n}"\nuids = [{n}]\n' for n in range(3))
    )
    certificates, uids = settings(file).warnings
    assert certificates.startswith("certificates of caller a are of no use")
    assert uids.startswith("uids of callers b, c0, c1 and 1 more are of no use")
    authority = Authority(tmp_path)
    own = str(authority.issue())
    ca = write(authority.pem.decode(), "ca.pem")
    tls = {"NOMBA_PROXY_TLS_CERT_FILE": own, "NOMBA_PROXY_TLS_KEY_FILE": own}
    listen = {"NOMBA_PROXY_LISTEN": f"https://127.0.0.1:0,unix://{tmp_path}/sock"}
    (found,) = settings(file, **tls, **listen).warnings
    assert found.startswith("certificates")
    assert settings(file, **tls, **listen, NOMBA_PROXY_TLS_CLIENT_CA_FILE=ca).warnings == ()


def test_a_caller_may_be_known_by_the_same_in_two_ways(write):
    path = write(
        '[[caller]]\nname = "a"\ncertificates = ["subject:CN=a", "subject:CN=a,O=x", "dns:a"]\n'
        'uids = [7]\n[[caller]]\nname = "b"\ncertificates = ["subject:CN=b,O=x"]\nuids = [8]\n'
    )
    assert len(settings(path).callers.callers) == 2


def test_all_that_is_wrong_with_what_callers_are_known_by_is_told_at_once(write):
    path = write(
        '[[caller]]\nname = "a"\ncertificates = ["x", "dns:a", "dns:b"]\nuids = [7, 65534]\n'
        '[[caller]]\nname = "b"\ncertificates = ["dns:a", "dns:b", "email:"]\nuids = [7]\n'
    )
    with pytest.raises(SettingsError) as found:
        settings(path)
    keys = [one.key for one in found.value.problems]
    assert Counter(keys) == {
        "caller a: certificates": 1,
        "caller a: uids": 1,
        "caller b: certificates": 3,
        "caller b: uids": 1,
    }


@pytest.mark.parametrize(
    ("written", "epoch"),
    [
        ("2027-01-31", 1801353600),
        ('"2027-01-31"', 1801353600),
        ('"2027-01-31T12:00:00"', 1801396800),
        ("2027-01-31T12:00:00", 1801396800),
        ("2027-01-31T12:00:00+01:00", 1801393200),
    ],
)
def test_a_time_without_a_zone_is_utc_however_it_is_written(write, monkeypatch, written, epoch):
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        path = write(f'[[caller]]\nname = "a"\nexpires = {written}\n', "callers.toml")
        (caller,) = settings(NOMBA_PROXY_CALLERS_FILE=path).callers.callers
    finally:
        monkeypatch.undo()
        time.tzset()
    assert caller.expires == epoch


def test_callers_of_both_files_count_and_a_name_stands_in_one_only(write):
    file = write('[[caller]]\nname = "a"\n')
    own = write('anonymous = true\n[[caller]]\nname = "b"\n', "callers.toml")
    loaded = settings(file, NOMBA_PROXY_CALLERS_FILE=own)
    assert [one.name for one in loaded.callers.callers] == ["a", "b"]
    assert loaded.callers.keeps_anonymous
    twice = write('[[caller]]\nname = "a"\n', "callers.toml")
    assert problem(settings, file, NOMBA_PROXY_CALLERS_FILE=twice).text == "is there twice"


def test_a_callers_file_that_is_named_and_not_there_is_a_problem(tmp_path):
    """Without it, the door that it closes could stand open."""
    environ = {"NOMBA_PROXY_CALLERS_FILE": str(tmp_path / "none.toml")}
    assert "nomba-proxy caller add" in problem(settings, **environ).hint
    assert load(environ=CREDENTIALS | environ, callers=False).callers.callers == ()
    found = problem(settings, NOMBA_PROXY_CALLERS_FILE=str(tmp_path))
    assert (found.key, "cannot be read" in found.text) == ("callers.file", True)


def test_an_upstream_that_is_not_there_is_a_warning(write):
    path = write('[[caller]]\nname = "a"\nupstreams = ["x"]\n', "callers.toml")
    loaded = settings(NOMBA_PROXY_CALLERS_FILE=path)
    assert "there is no x here; there is: nomba" in loaded.warnings[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("HOSTS", one) for one in ("proxy.lan:8080", "http://b.lan", "*", "a b")),
        *(("ORIGINS", one) for one in ("console.example", "*", "https://x/path", "null")),
    ],
)
def test_what_no_browser_would_send_is_no_host_and_no_origin(key, value):
    found = problem(settings, **{f"NOMBA_PROXY_CALLERS_{key}": value})
    assert found.key == f"callers.{key.lower()}"


def test_what_is_in_force_of_callers_is_shown(write):
    path = write('[[caller]]\nname = "app"\n', "callers.toml")
    rows = {key: value for key, value, _ in describe(settings(NOMBA_PROXY_CALLERS_FILE=path))}
    assert (rows["callers.file"], rows["caller"]) == (path, "app")
    rows = {key: value for key, value, _ in describe(settings(HOME="/h"))}
    assert rows["state_dir"] == "/h/.local/state/nomba-proxy"
    assert rows["callers.file"] == "/h/.local/state/nomba-proxy/callers.toml"


def test_the_state_folder_is_the_systems_unless_it_is_set():
    def where(**environ):
        return str(settings(**environ).state_dir)

    assert where(HOME="/home/a") == "/home/a/.local/state/nomba-proxy"
    assert where(HOME="/home/a", XDG_STATE_HOME="/s") == "/s/nomba-proxy"
    assert where(XDG_STATE_HOME="/s", STATE_DIRECTORY="/var/lib/n:/x") == "/var/lib/n"
    assert where(STATE_DIRECTORY="/var/lib/n", NOMBA_PROXY_STATE_DIR="/here") == "/here"


def test_a_signing_key_comes_from_the_environment_or_a_file_and_never_prints(write):
    key = "MARKED-" + "k" * 40
    file = write(key + "\n", "key")
    named = {"NOMBA_PROXY_CALLERS_SIGNING_KEY_FILE": file}
    for environ in ({"NOMBA_PROXY_CALLERS_SIGNING_KEY": key}, named):
        loaded = settings(**environ)
        assert loaded.signing_key.holds(key)
        assert "MARKED" not in repr(loaded) + str(describe(loaded))
    assert settings().signing_key is None
    assert "32 characters" in problem(settings, NOMBA_PROXY_CALLERS_SIGNING_KEY="short").text
    assert problem(settings, NOMBA_PROXY_CALLERS_SIGNING_KEY_FILE="/etc/none").text.startswith(
        "/etc/none cannot be read"
    )


@pytest.mark.parametrize("secret", ["MARKED-x", "MARKED/x/y==", "/MARKED+z/q=", "MARKED\0"])
@pytest.mark.parametrize(
    "name",
    [
        *("NOMBA_CLIENT_SECRET_FILE", "NOMBA_PROXY_ADMIN_TOKEN_FILE"),
        *("NOMBA_PROXY_CALLERS_SIGNING_KEY_FILE", "NOMBA_PROXY_STORE_PASSWORD_FILE"),
    ],
)
def test_a_secret_in_the_place_of_its_file_is_not_printed(name, secret):
    given = {"NOMBA_CLIENT_SECRET": None} if name == "NOMBA_CLIENT_SECRET_FILE" else {}
    with pytest.raises(SettingsError) as caught:
        settings(**given, **{name: secret})
    assert "never the secret itself" in str(caught.value)
    assert "MARKED" not in str(caught.value)


def test_a_password_for_the_way_out_is_not_printed(write):
    file = write('[[upstream]]\nconnect_proxy = "http://user:MARKED@proxy.internal:3128"')
    found = problem(settings, file)
    assert "leave out scheme, user and password" in found.text
    assert "MARKED" not in str(found)


def test_a_fault_of_ours_while_settings_are_read_again_is_a_problem_like_others():
    class Environ(dict):
        broken = False

        def items(self):
            if self.broken:
                raise RuntimeError("MARKED-SECRET")
            return super().items()

    environ = Environ(CREDENTIALS)
    loaded = load(environ=environ)
    assert loaded.again().model == loaded.model
    environ.broken = True
    with pytest.raises(SettingsError) as caught:
        loaded.again()
    assert "RuntimeError" in str(caught.value)
    assert "MARKED" not in str(caught.value)


# -- files that are none ----------------------------------------------------------------------


def unwaited(read, pipe):
    """The problem that `read` finds, where a pipe has taken a file's place; it must not wait."""
    found = []

    def reading():
        try:
            found.append(read())
        except SettingsError as error:
            found.append(str(error))

    thread = threading.Thread(target=reading, daemon=True)
    thread.start()
    thread.join(10)
    waits = thread.is_alive()
    os.close(os.open(pipe, os.O_RDWR))  # whoever waits for a writer has one now
    thread.join(10)
    assert not waits
    return found[0]


def in_its_place(path, make):
    Path(path).unlink()
    make(path)
    return path


def sock(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path)


@pytest.fixture
def everything(write, tmp_path):
    """Settings in which every kind of file is named, and the files by their keys."""
    file = str(Authority(tmp_path, "a CA of tests").issue())
    pem = Path(file).read_text()
    files = {
        "client_secret_file": write(SECRET, "secret"),
        "client_secret_next_file": write(SECRET + "2", "next"),
        "admin.token_file": write("t" * 40, "token"),
        "callers.signing_key_file": write("k" * 40, "key"),
        "callers.file": write("", "callers.toml"),
        "upstream.ca_file": write(pem, "ca.pem"),
        "tls.cert_file": write(pem, "cert.pem"),
        "tls.key_file": write(pem, "key.pem"),
        "tls.client_ca_file": write(pem, "client-ca.pem"),
    }
    files["config"] = write(
        f"""
        listen = ["https://127.0.0.1:0"]
        state_dir = "{tmp_path}"
        admin.token_file = "{files["admin.token_file"]}"
        [callers]
        file = "{files["callers.file"]}"
        signing_key_file = "{files["callers.signing_key_file"]}"
        [tls]
        cert_file = "{files["tls.cert_file"]}"
        key_file = "{files["tls.key_file"]}"
        client_ca_file = "{files["tls.client_ca_file"]}"
        [[upstream]]
        client_id = "client-0123456789"
        account_id = "account-0123456789"
        client_secret_file = "{files["client_secret_file"]}"
        client_secret_next_file = "{files["client_secret_next_file"]}"
        ca_file = "{files["upstream.ca_file"]}"
        """
    )
    return files


KEYS = (
    *("config", "client_secret_file", "client_secret_next_file", "admin.token_file"),
    *("callers.signing_key_file", "callers.file", "upstream.ca_file"),
    *("tls.cert_file", "tls.key_file", "tls.client_ca_file"),
)


@pytest.mark.parametrize("key", KEYS)
def test_no_file_is_waited_for_while_a_proxy_runs(everything, key):
    loaded = bare(everything["config"])
    pipe = in_its_place(everything[key], os.mkfifo)
    assert "is no regular file now" in unwaited(loaded.again, pipe)


@pytest.mark.parametrize("key", ["client_secret_file", "client_secret_next_file"])
def test_no_secret_is_waited_for_by_who_watches_it(everything, key):
    (one,) = bare(everything["config"]).upstreams
    pipe = in_its_place(everything[key], os.mkfifo)
    assert "is no regular file now" in unwaited(one.read_secrets, pipe)


def test_no_callers_are_waited_for_by_who_watches_them(everything):
    loaded = bare(everything["config"])
    pipe = in_its_place(everything["callers.file"], os.mkfifo)
    assert "is no regular file now" in unwaited(loaded.read_callers, pipe)


def test_a_socket_and_a_folder_are_no_files_either(everything):
    loaded = bare(everything["config"])
    for make in (sock, os.mkdir):
        path = in_its_place(everything["admin.token_file"], make)
        with pytest.raises(SettingsError, match="cannot be read"):
            loaded.again()
        Path(path).rmdir() if make is os.mkdir else Path(path).unlink()
        Path(path).write_text("t" * 40)
    assert loaded.again().model == loaded.model


def test_no_settings_at_all_may_be_given_by_the_empty_device():
    loaded = settings("/dev/null", **SANDBOX)
    assert loaded.again().model == loaded.model


def test_at_start_a_secret_may_come_through_a_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writing = threading.Thread(target=pipe.write_text, args=(SECRET + "\n",), daemon=True)
    writing.start()
    named = {"NOMBA_CLIENT_SECRET": None, "NOMBA_CLIENT_SECRET_FILE": str(pipe)}
    (one,) = settings(**SANDBOX, **named).upstreams
    writing.join(10)
    assert one.client_secret.holds(SECRET)
