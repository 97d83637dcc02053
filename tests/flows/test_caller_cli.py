"""`nomba-proxy caller`: as people and scripts use it, with a proxy that runs meanwhile."""

import asyncio
import json
import os
import pty
import pwd
import sys
import tomllib
from pathlib import Path

import pytest
from harness import environ, run

from proxy.core.caller import Digest

BALANCE = "/v1/accounts/balance"


@pytest.fixture
def caller(tmp_path):
    """Run `nomba-proxy caller …` on the state folder of this test's proxies."""

    async def begin(*arguments, **env):
        return await run("caller", *arguments, NOMBA_PROXY_STATE_DIR=str(tmp_path / "state"), **env)

    return begin


@pytest.fixture
def kept(tmp_path):
    return lambda: tomllib.loads((tmp_path / "state" / "callers.toml").read_text())


async def status(proxy, expected, *headers):
    """The status of a request, once the proxy has seen what was changed."""
    for _ in range(100):
        if (found := (await proxy.get(BALANCE, *headers)).status) == expected:
            break
        await asyncio.sleep(0.05)
    return found


async def test_the_whole_life_of_a_caller(caller, kept, start_proxy):
    proxy = await start_proxy()
    assert await status(proxy, 200) == 200
    code, out, err = await caller("add", "billing", "--close-anonymous", "--role", "read-only")
    key = out.strip()
    assert code == 0
    assert key.startswith("npk_billing_")
    assert out.count("\n") == 1  # so that a script can take it
    assert "shown once" in err
    assert key not in err
    with_key = f"X-Nomba-Proxy-Key: {key}"
    assert await status(proxy, 200, with_key) == 200
    assert await status(proxy, 401) == 401
    transfer = await proxy.send("POST", "/v2/transfers/bank", with_key, body=b"{}")
    assert (transfer.status, transfer.json["proxy"]["error"]) == (403, "caller_forbidden")

    code, out, err = await caller("rotate", "billing")
    second = out.strip()
    assert "--finish" in err
    for one in (second, key):
        assert await status(proxy, 200, f"X-Nomba-Proxy-Key: {one}") == 200
    assert (await caller("rotate", "billing", "--finish"))[0] == 0
    assert await status(proxy, 401, with_key) == 401
    assert await status(proxy, 200, f"X-Nomba-Proxy-Key: {second}") == 200
    code, _, err = await caller("rotate", "billing", "--finish")
    assert (code, "nothing to finish" in err) == (1, True)

    assert (await caller("disable", "billing"))[0] == 0
    assert await status(proxy, 401, f"X-Nomba-Proxy-Key: {second}") == 401
    assert "DISABLED" in (await caller("list"))[1]
    assert (await caller("enable", "billing"))[0] == 0
    assert await status(proxy, 200, f"X-Nomba-Proxy-Key: {second}") == 200
    assert (await caller("remove", "billing"))[0] == 0
    assert await status(proxy, 401, f"X-Nomba-Proxy-Key: {second}") == 401
    assert await status(proxy, 401) == 401  # the door that was closed stays closed
    assert kept() == {"anonymous": False}
    assert key not in proxy.log.text
    assert second not in proxy.log.text


async def test_the_file_holds_a_digest_and_is_for_its_owner_only(caller, kept, tmp_path):
    _, out, _ = await caller("add", "app", "--keep-anonymous")
    path = tmp_path / "state" / "callers.toml"
    assert path.stat().st_mode & 0o777 == 0o600
    assert out.strip() not in path.read_text()
    (entry,) = kept()["caller"]
    assert Digest.parse(entry["secrets"][0]).fits(out.strip())
    assert kept()["anonymous"] is True


async def test_everything_that_can_be_said_of_a_caller(caller, kept):
    code, _, _ = await caller(
        *("add", "app", "--close-anonymous", "--role", "no-money", "--upstream", "nomba"),
        *("--account", "A-1", "--account", "b-2", "--rule", "allow GET /v1/**"),
        *("--rule", "deny any", "--observe", "--rate", "2.5", "--burst", "9"),
        *("--concurrent", "3", "--body-limit", "64KiB", "--expires", "2099-01-31"),
        *("--certificate", "subject:CN=app,O=Acme", "--certificate", "dns:app.internal"),
        *("--uid", "1001", "--uid", "7"),
    )
    assert code == 0
    code, out, _ = await caller("list", "--json")
    (row,) = json.loads(out)["callers"]
    (secret,) = row.pop("secrets")
    assert len(secret) == 12
    assert row == {
        "name": "app",
        "enabled": True,
        "expires": "2099-01-31T00:00:00Z",
        "role": "no-money",
        "upstreams": ["nomba"],
        "accounts": ["a-1", "b-2"],
        "certificates": ["subject:CN=app,O=Acme", "dns:app.internal"],
        "uids": [7, 1001],
        "rules": ["allow GET /v1/**", "deny any"],
        "observe": True,
        "rate": 2.5,
        "burst": 9,
        "concurrent": 3,
        "body_limit": 65536,
    }
    code, out, _ = await caller("list")
    assert "no-money" in out
    assert "2 rules, observed only" in out
    assert "1 valid secret, certificates: subject:CN=app,O=Acme or dns:app.internal" in out
    assert "uids: 7 1001" in out


async def test_a_caller_without_a_key(caller, kept):
    """It is known by its certificate or its user alone."""
    me = pwd.getpwuid(os.getuid()).pw_name
    code, out, err = await caller(
        *("add", "app", "--close-anonymous", "--no-key", "--uid", me),
        *("--certificate", "uri:spiffe://acme/app"),
    )
    assert (code, out, err) == (0, "caller app is added\n", "")
    (entry,) = kept()["caller"]
    assert (entry["secrets"], entry["uids"]) == ([], [me])
    line = (await caller("list"))[1]
    assert "full, certificates: uri:spiffe://acme/app, uids: " in line
    assert "secret" not in line
    (row,) = json.loads((await caller("list", "--json"))[1])["callers"]
    assert (row["secrets"], row["uids"]) == ([], [os.getuid()])
    code, out, err = await caller("rotate", "app")
    assert (code, out) == (1, "")
    assert "caller app has no key" in err
    assert kept()["caller"] == [entry]
    code, _, err = await caller("rotate", "app", "--finish")
    assert (code, "nothing to finish" in err) == (1, True)
    for action in ("disable", "enable", "remove"):
        assert (await caller(action, "app"))[0] == 0


async def test_a_caller_without_a_key_in_json(caller, tmp_path):
    code, out, _ = await caller(
        "add", "app", "--close-anonymous", "--no-key", "--certificate", "dns:app", "--json"
    )
    file = str(tmp_path / "state" / "callers.toml")
    assert (code, json.loads(out)) == (0, {"caller": "app", "done": "added", "file": file})


async def test_the_first_caller_asks_what_becomes_of_strangers(caller, tmp_path):
    code, out, err = await caller("add", "app")
    assert (code, out) == (1, "")
    assert "--close-anonymous" in err
    assert "--keep-anonymous" in err
    assert not (tmp_path / "state" / "callers.toml").exists()
    assert (await caller("add", "app", NOMBA_PROXY_CALLERS_ANONYMOUS="false"))[0] == 0
    assert (await caller("add", "second"))[0] == 0  # it was settled


async def test_a_closed_door_is_told_of_and_how_it_is_opened_again(
    caller, kept, start_proxy, tmp_path
):
    path = tmp_path / "state" / "callers.toml"
    assert "let in where no real money moves; anonymous = false" in (await caller("list"))[2]
    assert (await caller("add", "app", "--close-anonymous"))[0] == 0
    assert (await caller("remove", "app"))[0] == 0
    code, out, err = await caller("list")
    assert (code, out) == (0, "no callers yet: nomba-proxy caller add NAME\n")
    assert f"are refused; anonymous = true lets them in where no real money moves, in {path}" in err
    proxy = await start_proxy()
    assert await status(proxy, 401) == 401
    path.write_text(path.read_text().replace("false", "true"))
    assert await status(proxy, 200) == 200
    assert "let in" in (await caller("list"))[2]
    told = (await caller("list", NOMBA_PROXY_CALLERS_ANONYMOUS="false"))[2]
    assert "callers.anonymous = false is set" in told
    assert (await caller("list", "--json"))[2] == ""


async def test_a_setting_that_keeps_the_door_open_is_named(caller):
    code, _, err = await caller(
        "add", "app", "--close-anonymous", NOMBA_PROXY_CALLERS_ANONYMOUS="true"
    )
    assert (code, "callers.anonymous = true is set" in err) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("add", "app", "--close-anonymous"), 1, "already"),
        (("add", "Bad_Name", "--close-anonymous"), 2, "lower-case"),
        (("add", "owner", "--close-anonymous"), 2, "the proxy's own"),
        (("add", "x", "--close-anonymous", "--rule", "allow foo"), 2, "class:read"),
        (("add", "x", "--close-anonymous", "--expires", "soon"), 1, "2027-01-31"),
        (("add", "x", "--close-anonymous", "--expires", "2020-01-01"), 1, "is over already"),
        (("add", "x", "--close-anonymous", "--account", ""), 2, "empty id"),
        (("add", "x", "--close-anonymous", "--rate", "-1"), 2, "greater than or equal to 0"),
        (("add", "x", "--close-anonymous", "--burst", "2"), 2, "without rate"),
        (("add", "x", "--close-anonymous", "--body-limit", "huge"), 2, "a size such as 1MiB"),
        (("add", "x", "--close-anonymous", "--no-key"), 1, "--certificate or --uid"),
        (("add", "x", "--close-anonymous", "--certificate", "CN=x"), 2, "subject:CN=NAME"),
        (("add", "x", "--close-anonymous", "--certificate", "dns:a"), 2, "pattern of caller app"),
        (("add", "x", "--close-anonymous", "--uid", "7"), 2, "uid of caller app"),
        (("add", "x", "--close-anonymous", "--uid", "no-one-here"), 2, "no user of this machine"),
        (("add", "x", "--close-anonymous", "--uid", "65534"), 2, "another user namespace"),
        (("rotate", "nobody"), 1, "there is no caller nobody; there are: app"),
        (("disable", "nobody"), 1, "no caller nobody"),
        (("remove", "nobody"), 1, "no caller nobody"),
    ],
)
async def test_what_cannot_be_done_is_told_and_changes_nothing(
    caller, tmp_path, arguments, code, text
):
    known = ("--certificate", "dns:a", "--uid", "7")
    assert (await caller("add", "app", "--close-anonymous", *known))[0] == 0
    path = tmp_path / "state" / "callers.toml"
    before = path.read_text()
    got, out, err = await caller(*arguments)
    assert (got, out) == (code, "")
    assert text in err
    assert path.read_text() == before


async def test_what_a_person_wrote_into_the_file_stays(caller, tmp_path):
    path = tmp_path / "state" / "callers.toml"
    path.parent.mkdir()
    path.write_text('# ours, keep\n[[caller]]\nname = "app" # the shop\nrole = "full"\n')
    assert (await caller("rotate", "app"))[0] == 0
    assert (await caller("add", "more"))[0] == 0
    text = path.read_text()
    assert "# ours, keep" in text
    assert "# the shop" in text
    path.write_text("not = = toml")
    code, _, err = await caller("add", "third")
    assert (code, "no valid TOML" in err) == (2, True)


async def test_a_caller_can_be_disabled_whatever_else_is_wrong(caller, kept, tmp_path):
    path = tmp_path / "state" / "callers.toml"
    path.parent.mkdir()
    path.write_text(
        '[[caller]]\nname = "app"\nupstreams = ["simulator"]\n'
        '[[caller]]\nname = "odd"\nrules = ["nonsense"]\n'
    )
    code, _, err = await caller("disable", "app")
    assert (code, "the change is kept, but" in err) == (1, True)
    assert "nonsense" in err
    assert kept()["caller"][0]["enabled"] is False
    assert (await caller("remove", "odd"))[0] == 0
    code, out, _ = await caller("list")
    assert (code, "DISABLED" in out) == (0, True)


async def test_an_upstream_that_is_not_there_is_noted(caller):
    code, out, err = await caller("add", "app", "--close-anonymous", "--upstream", "else")
    assert (code, out.startswith("npk_app_")) == (0, True)
    assert "else is no upstream of these settings" in err


async def test_a_third_key_is_refused_until_the_oldest_has_ended(caller, kept):
    assert (await caller("add", "app", "--close-anonymous"))[0] == 0
    assert (await caller("rotate", "app"))[0] == 0
    code, out, err = await caller("rotate", "app")
    assert (code, out) == (1, "")
    assert "nomba-proxy caller rotate app --finish" in err
    assert len(kept()["caller"][0]["secrets"]) == 2


async def test_a_caller_of_the_settings_file_is_changed_there(caller, tmp_path):
    file = tmp_path / "proxy.toml"
    file.write_text('[[caller]]\nname = "fixed"\n')
    config = ("--config", str(file))
    assert "fixed" in (await caller("list", *config))[1]
    code, _, err = await caller("rotate", "fixed", *config)
    assert (code, "stands in the settings file" in err) == (1, True)
    code, _, err = await caller("add", "fixed", "--close-anonymous", *config)
    assert (code, "already" in err) == (1, True)


async def test_a_link_to_the_file_stays_a_link(caller, tmp_path):
    real, link = tmp_path / "real.toml", tmp_path / "state" / "callers.toml"
    link.parent.mkdir()
    real.write_text('[[caller]]\nname = "app"\n')
    link.symlink_to(real)
    assert (await caller("disable", "app"))[0] == 0
    assert link.is_symlink()
    assert "enabled = false" in real.read_text()


async def test_a_key_that_nobody_saw_is_no_key(tmp_path):
    state = {"NOMBA_PROXY_STATE_DIR": str(tmp_path / "state")}
    with Path("/dev/full").open("wb") as full:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "proxy", "caller", "add", "app", "--close-anonymous"),
            env=environ(**state),
            stdout=full,
            stderr=asyncio.subprocess.PIPE,
        )
        await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 1
    assert tomllib.loads((tmp_path / "state" / "callers.toml").read_text())["caller"] == []


async def test_many_at_once_lose_nothing(caller, kept):
    assert (await caller("add", "first", "--close-anonymous"))[0] == 0
    done = await asyncio.gather(*(caller("add", f"app-{n}") for n in range(6)))
    assert {code for code, _, _ in done} == {0}
    assert len(kept()["caller"]) == 7


async def test_no_answer_changes_nothing(tmp_path):
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", "caller", "add", "app"),
        env=environ(NOMBA_PROXY_STATE_DIR=str(tmp_path / "state")),
        stdin=theirs,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(theirs)
    os.write(ours, b"\x04")
    out, err = await asyncio.wait_for(process.communicate(), 30)
    os.close(ours)
    assert (process.returncode, out) == (1, b"")
    assert b"nothing was changed" in err
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(("answer", "stays"), [("\n", False), ("y\n", False), ("n\n", True)])
async def test_a_person_is_asked_at_a_terminal(kept, tmp_path, answer, stays):
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", "caller", "add", "app"),
        env=environ(NOMBA_PROXY_STATE_DIR=str(tmp_path / "state")),
        stdin=theirs,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(theirs)
    os.write(ours, answer.encode())
    out, err = await asyncio.wait_for(process.communicate(), 30)
    os.close(ours)
    assert process.returncode == 0, err
    assert "Close that door?" in (out + err).decode()
    assert out.decode().strip().splitlines()[-1].startswith("npk_app_")
    assert kept()["anonymous"] is stays
