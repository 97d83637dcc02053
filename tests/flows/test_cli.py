"""The command line as a user runs it: processes, signals, exit codes, what is printed."""

import asyncio
import json
import os
import pty
import signal
import socket
import sys
from pathlib import Path

import aiohttp
import pytest
from harness import environ, run, served

from proxy.app.banner import banner
from proxy.app.running import Running
from proxy.settings import Listener, load

CREDENTIALS = {
    "NOMBA_CLIENT_ID": "client-id-0123456789",
    "NOMBA_CLIENT_SECRET": "marked-secret-0123456789",
    "NOMBA_ACCOUNT_ID": "account-id-0123456789",
}


async def curl(line: str) -> dict:
    command, flag, url = line.split()
    assert (command, flag) == ("curl", "-s")
    async with aiohttp.ClientSession() as http, http.get(url) as reply:
        assert reply.status == 200
        return await reply.json()


async def test_without_credentials_the_simulator_serves_the_printed_curl():
    async with served("--simulate=auto") as proxy:
        assert "SIMULATOR" in proxy.banner
        assert "0000…0001" in proxy.banner
        assert "00000000-0000-4000-8000-acc000000001" not in proxy.banner
        readme = Path(__file__).parents[2].joinpath("README.md").read_text()
        assert json.dumps(await curl(proxy.curl), separators=(",", ":")) in readme
        assert proxy.curl.replace(proxy.address, "127.0.0.1:8080") in readme
        proxy.process.terminate()
        out, _ = await asyncio.wait_for(proxy.process.communicate(), 30)
    assert proxy.process.returncode == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["event"] for line in lines if line["event"] == "exchange"] == ["exchange"]
    assert lines[-1]["event"] == "draining"


async def test_with_credentials_auto_means_the_real_upstream(simulator):
    switches = simulator.switches
    env = {
        "NOMBA_CLIENT_ID": switches.client_id,
        "NOMBA_PRIVATE_KEY": switches.client_secret,
        "NOMBA_PARENT_ACCOUNT_ID": switches.account_id,
        "NOMBA_BASE_URL": simulator.origin,
    }
    async with served("--simulate=auto", **env) as proxy:
        assert "SIMULATOR" not in proxy.banner
        assert simulator.origin in proxy.banner
        assert (await curl(proxy.curl))["code"] == "00"
    assert simulator.count("/v1/accounts/balance") == 1


async def test_serve_without_credentials_says_what_to_set():
    code, out, err = await run("serve")
    assert (code, out) == (2, "")
    for name in ("NOMBA_CLIENT_ID", "NOMBA_CLIENT_SECRET", "NOMBA_ACCOUNT_ID", "--simulate"):
        assert name in err


async def test_all_problems_are_reported_at_once(tmp_path):
    config = tmp_path / "proxy.toml"
    config.write_text('lisen = "x"\n[body]\nlimit = "huge"\n[[upstream]]\nclient_secret = "s3cr"\n')
    code, _, err = await run(
        "check",
        f"--config={config}",
        NOMBA_BASE_URL="https://sandbox.api.nomba.com",
        NOMBA_PROXY_ADMIN_LISTEN="0.0.0.0",
    )
    assert code == 2
    for part in ("lisen", "listen?", "body.limit", "https://sandbox.nomba.com", "admin.listen"):
        assert part in err
    assert "client_secret_file" in err
    assert "s3cr" not in err


async def test_check_show_names_every_origin_and_no_secret(tmp_path):
    config = tmp_path / "proxy.toml"
    config.write_text("[token]\nearly = 240\n")
    code, out, _ = await run(
        "check",
        "--show",
        f"--config={config}",
        "--set",
        "log.level=warning",
        NOMBA_PROXY_LISTEN="127.0.0.1:8181",
        **CREDENTIALS,
    )
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert code == 0
    assert f"file {config}" in rows["token.early"]
    assert "environment NOMBA_PROXY_LISTEN" in rows["listen"]
    assert rows["log.level"].endswith("flag")
    assert rows["body.limit"].endswith("default")
    assert "***" in rows["upstream.0.client_secret"]
    assert not [value for value in CREDENTIALS.values() if value in out]


async def test_check_prints_json_for_machines():
    code, out, _ = await run("check", "--json", **CREDENTIALS)
    assert code == 0
    assert json.loads(out)["settings"]["listen"] == {"value": "127.0.0.1:8080", "origin": "default"}


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({}, "add one with a key of its own: nomba-proxy caller add NAME"),
        ({"NOMBA_PROXY_CALLERS_ANONYMOUS": "true"}, "anybody on this machine may use https"),
    ],
)
def test_production_is_closed_to_anonymous_callers_until_they_are_allowed(more, text):
    settings = load(environ=CREDENTIALS | more)  # nothing is started: tests dial loopback only
    running = Running(
        settings.listen, Listener(settings.admin_listen), settings.upstreams, "", None, None
    )
    shown = banner(running, settings=settings)
    assert "production, https://api.nomba.com" in shown
    assert text in shown
    assert "acco…6789" in shown
    assert CREDENTIALS["NOMBA_ACCOUNT_ID"] not in shown


async def test_the_token_verbs_speak_to_the_running_proxy():
    async with served("--simulate") as proxy:
        await curl(proxy.curl)
        admin = f"--admin-listen={proxy.admin}"
        code, out, _ = await run("token", "show", admin)
        assert code == 0
        assert "simulator: living, generation 1" in out
        assert "***" in out
        code, out, _ = await run("token", "renew", admin, "--json")
        assert (code, json.loads(out)["simulator"]["generation"]) == (0, 2)
        code, out, _ = await run("token", "revoke", admin)
        assert "living, generation 3" in out
        code, out, _ = await run("token", "revoke", "--stop", admin)
        assert "stopped" in out
        code, out, _ = await run("token", "renew", admin, "--upstream=simulator")
        assert "living, generation 4" in out
        for action in ("show", "renew", "revoke"):
            code, out, err = await run("token", action, admin, "--upstream=other")
            assert (code, out) == (1, "")
            assert "simulator" in err


async def test_a_token_verb_without_a_running_proxy_says_what_to_do():
    code, _, err = await run("token", "show", "--admin-listen=127.0.0.1:1")
    assert code == 1
    assert "nomba-proxy serve" in err
    assert "--admin-listen" in err


async def test_a_token_verb_says_that_somebody_listens_and_does_not_answer():
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel takes the connection
        host, port = silent.getsockname()
        code, out, err = await run("token", "show", f"--admin-listen={host}:{port}")
    assert (code, out) == (1, "")
    assert f"somebody listens on {host}:{port}, and says nothing for 10 s" in err
    assert "nomba-proxy doctor" in err
    assert "nomba-proxy serve" not in err


async def test_who_is_told_of_a_failing_login_is_told_what_to_try(simulator):
    wrong = CREDENTIALS | {"NOMBA_BASE_URL": simulator.origin}
    async with served(**wrong) as proxy:
        for _ in range(100):
            code, out, _ = await run("token", "show", f"--admin-listen={proxy.admin}")
            if "last error" in out:
                break
    assert code == 0
    assert "nomba-proxy doctor" in out


async def test_an_address_in_use_is_a_clear_failure():
    async with served("--simulate") as proxy:
        code, _, err = await run("serve", "--simulate", f"--listen={proxy.address}")
    assert code == 1
    assert proxy.address in err
    assert "Traceback" not in err


async def test_the_pure_python_parser_is_refused():
    code, _, err = await run("serve", "--simulate", AIOHTTP_NO_EXTENSIONS="1")
    assert code == 1
    assert "pure-Python parser" in err


async def test_a_second_signal_ends_at_once(simulator):
    env = {
        "NOMBA_CLIENT_ID": simulator.switches.client_id,
        "NOMBA_CLIENT_SECRET": simulator.switches.client_secret,
        "NOMBA_ACCOUNT_ID": simulator.switches.account_id,
        "NOMBA_BASE_URL": simulator.origin,
    }
    with simulator.hold("/v1/accounts/balance") as hold:
        async with served(**env) as proxy:
            call = asyncio.create_task(curl(proxy.curl))
            await hold.caught(1)
            proxy.process.send_signal(signal.SIGTERM)
            while b'"draining"' not in await asyncio.wait_for(proxy.process.stdout.readline(), 30):
                pass
            proxy.process.send_signal(signal.SIGTERM)
            out, _ = await asyncio.wait_for(proxy.process.communicate(), 10)
            with pytest.raises(aiohttp.ClientError):
                await call
    assert proxy.process.returncode == 1
    lines = [json.loads(line) for line in out.splitlines()]
    (cut,) = [line for line in lines if line["event"] == "exchange"]
    assert (cut["outcome"], cut["attempts"]) == ("unknown", 1)


async def test_a_simulated_upstream_keeps_the_policies_and_the_account_that_are_set():
    mine = "99999999-0000-4000-8000-acc000000009"
    for more, env, status in (
        ((), {}, 403),
        (("--set", "upstream.account_override_money=true"), {}, 404),
        ((), {"NOMBA_ACCOUNT_ID": mine}, 404),
        (("--set", f"upstream.account_id={mine}"), {}, 404),
    ):
        async with (
            served("--simulate", *more, **env) as proxy,
            aiohttp.ClientSession(headers={"accountId": mine}) as http,
        ):
            base = f"http://{proxy.address}/v1"
            async with http.get(f"{base}/accounts/balance") as reply:
                assert reply.status == 200
            async with http.post(f"{base}/no/such/payout", data=b"{}") as reply:
                assert reply.status == status


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["serve", "--help"],
        ["check", "--help"],
        ["token", "--help"],
        ["token", "revoke", "--help"],
    ],
)
async def test_help_is_there_for_every_verb(arguments):
    code, out, _ = await run(*arguments)
    assert code == 0
    assert "usage: nomba-proxy" in out


@pytest.mark.parametrize(
    "arguments", [[], ["nothing"], ["serve", "--client-secret=x"], ["serve", "--set", "x"]]
)
async def test_wrong_usage_is_exit_code_2(arguments):
    code, _, err = await run(*arguments)
    assert code == 2
    assert "usage: nomba-proxy" in err


@pytest.mark.parametrize("where", [">&-", "| head -0", ">/dev/full"])
async def test_an_output_that_nobody_takes_is_no_traceback(where):
    process = await asyncio.create_subprocess_shell(
        f"{sys.executable} -m proxy check --show --simulate {where}",
        env=environ(),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await asyncio.wait_for(process.communicate(), 30)
    assert b"Traceback" not in err


async def test_a_secret_is_never_taken_as_a_flag():
    code, _, err = await run("check", "--set", "upstream.client_secret=marked", **CREDENTIALS)
    assert code == 2
    assert "marked" not in err.replace("marked-secret", "")


COMPLETE = """
eval "$("$1" -m proxy completion bash)"
shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
$(complete -p nomba-proxy | sed -E 's/.*-F ([^ ]+).*/\\1/') nomba-proxy "${@: -1}" "${@: -2:1}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["to"], ["token"]),
        (["token", ""], ["show", "renew", "revoke"]),
        (["token", "revoke", "--st"], ["--stop"]),
        (["caller", "add", "shop", "--role", "no"], ["no-money"]),
        (["export", "--har", "/proc/self/stat"], ["/proc/self/stat", "/proc/self/statm"]),
    ],
)
async def test_bash_completes_verbs_flags_and_files(words, completed):
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", COMPLETE, "bash", sys.executable, "nomba-proxy", *words),
        env=environ(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert err == b""
    assert set(completed) <= set(out.decode().split())
    assert all(one.startswith(words[-1]) for one in out.decode().split())


@pytest.mark.parametrize("shell", ["zsh", "fish", "tcsh"])
async def test_the_other_shells_have_a_script_too(shell):
    code, out, err = await run("completion", shell)
    assert (code, err) == (0, "")
    assert "no-money" in out


async def test_the_version_is_the_packages():
    from proxy import __version__

    for arguments in ("version", "--version"):
        assert (await run(arguments))[1] == f"nomba-proxy {__version__}\n"


async def test_a_terminal_gets_lines_for_people():
    ours, theirs = pty.openpty()
    try:
        async with served("--simulate", stdout=theirs) as proxy:
            os.close(theirs)
            await curl(proxy.curl)
            text = b""
            while b"/v1/accounts/balance" not in text:
                text += await asyncio.to_thread(os.read, ours, 4096)
        assert not text.lstrip().startswith(b"{")
        assert b"GET /v1/accounts/balance 200 answered in" in text
    finally:
        os.close(ours)


def test_the_console_script_is_declared():
    text = Path(__file__).parents[2].joinpath("pyproject.toml").read_text()
    assert 'nomba-proxy = "proxy.cli:main"' in text
