"""The units, and systemd played: its sockets, its credentials, what it is told, its signals."""

import asyncio
import signal
import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager

import pytest
from deploying import DEPLOY, Notices, as_a_service, program, unit
from harness import read_reply

from proxy.app.notify import Manager
from proxy.settings import SettingsModel

SERVICE = unit("nomba-proxy.service")["Service"]
SOCKET = unit("nomba-proxy.socket")["Socket"]
GET = b"GET /v1/accounts/balance HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def service(simulator, tmp_path):
    """The environment that the unit gives the service, with the files that LoadCredential= names."""
    credentials, state = tmp_path / "credentials", tmp_path / "state"
    for folder in (credentials, state / "nomba-proxy"):
        folder.mkdir(parents=True, mode=0o700)
    switches = simulator.switches
    values = {
        "NOMBA_CLIENT_ID": switches.client_id,
        "NOMBA_CLIENT_SECRET": switches.client_secret,
        "NOMBA_ACCOUNT_ID": switches.account_id,
    }
    for line in SERVICE["LoadCredential"]:
        name = line.partition(":")[0]
        (credentials / name).write_text(f"{values.pop(name)}\n")
        (credentials / name).chmod(0o400)
    assert values == {}
    given = dict(one.replace("%S", str(state)).split("=", 1) for one in SERVICE["Environment"])
    return {
        **given,
        "CREDENTIALS_DIRECTORY": str(credentials),
        "STATE_DIRECTORY": str(state / "nomba-proxy"),
        # what the unit has no need to say, with a simulator
        "NOMBA_BASE_URL": simulator.origin,
        "NOMBA_PROXY_ADMIN_LISTEN": "127.0.0.1:0",
        "NOMBA_PROXY_LOG_FORMAT": "json",
    }


@contextmanager
def sockets(folder):
    """What systemd makes of the socket unit, in its order: those of TCP, and those with a file."""
    with ExitStack() as stack:
        made = []
        for at, where in enumerate(SOCKET["ListenStream"]):
            if where.startswith("/"):
                sock = stack.enter_context(socket.socket(socket.AF_UNIX))
                sock.bind(str(folder / f"{at}.sock"))
                sock.listen()
            else:
                sock = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            made.append(sock)
        yield made


async def ask(sock):
    """A request to whoever accepts from a socket."""
    where = sock.getsockname()
    connecting = (
        asyncio.open_unix_connection(where)
        if isinstance(where, str)
        else asyncio.open_connection(*where)
    )
    reader, writer = await connecting
    try:
        writer.write(GET)
        return await asyncio.wait_for(read_reply(reader), 30)
    finally:
        writer.close()


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("abstract", [True, False], ids=["abstract", "path"])
async def test_the_manager_is_told_how_it_goes(service, tmp_path, abstract, workers):
    address = (
        f"@nomba-proxy-{tmp_path.name}-{tmp_path.parent.name}"
        if abstract
        else str(tmp_path / "notify")
    )
    notices = Notices(address)
    env = {**service, "NOTIFY_SOCKET": address, "WATCHDOG_USEC": "600000"}
    env["NOMBA_PROXY_WORKERS"] = workers
    with sockets(tmp_path) as given:
        async with as_a_service(*given, **env) as process:
            ready = await notices.until("READY")
            assert service["NOMBA_BASE_URL"] in ready["STATUS"]
            for one in given:  # READY=1 says that it listens
                assert (await ask(one)).status == 200
            for _ in range(3):
                await notices.until("WATCHDOG")

            before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            process.send_signal(signal.SIGHUP)
            reloading = await notices.until("RELOADING")
            assert before <= int(reloading["MONOTONIC_USEC"])
            assert (
                int(reloading["MONOTONIC_USEC"])
                <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            )
            assert (await notices.until("READY"))["READY"] == "1"

            process.send_signal(signal.SIGTERM)
            await notices.until("STOPPING")
            assert await asyncio.wait_for(process.wait(), 30) == 0
    notices.close()
    order = [next(iter(one)) for one in notices.told]
    assert [one for one in order if one != "WATCHDOG"] == [
        "READY",
        "RELOADING",
        "READY",
        "STOPPING",
    ]


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_the_manager_hears_of_the_end_of_a_reload_that_changes_nothing(
    service, tmp_path, workers
):
    notices = Notices(str(tmp_path / "notify"))
    settings = tmp_path / "proxy.toml"
    settings.write_text("")
    env = {**service, "NOTIFY_SOCKET": str(tmp_path / "notify"), "NOMBA_PROXY_WORKERS": workers}
    with sockets(tmp_path) as given:
        async with as_a_service(*given, **env, NOMBA_PROXY_CONFIG=str(settings)) as process:
            await notices.until("READY")
            settings.write_text("no settings")
            process.send_signal(signal.SIGHUP)
            await notices.until("RELOADING")
            await notices.until("READY")
            assert (await ask(given[0])).status == 200
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 30) == 0
    notices.close()


async def test_callers_wait_in_the_socket_while_the_service_restarts(service, tmp_path, simulator):
    notices = Notices(str(tmp_path / "notify"))
    env = {**service, "NOTIFY_SOCKET": str(tmp_path / "notify")}
    with sockets(tmp_path) as given:
        waiting = asyncio.create_task(
            ask(given[0])
        )  # the service is started by whoever comes first
        for _ in range(2):
            async with as_a_service(*given, **env) as process:
                await notices.until("READY")
                assert (await waiting).status == 200
                process.send_signal(signal.SIGTERM)
                assert await asyncio.wait_for(process.wait(), 30) == 0
            waiting = asyncio.create_task(ask(given[1]))  # and meets nobody yet
        await asyncio.sleep(0)
        waiting.cancel()
    notices.close()
    assert (
        len(simulator.calls("/v1/auth/token/issue")) == 1
    )  # the session lies in the state directory


async def test_a_manager_that_cannot_be_reached_is_no_reason_to_end(service, tmp_path):
    env = {**service, "NOTIFY_SOCKET": str(tmp_path / "nobody")}
    with sockets(tmp_path) as given:
        async with as_a_service(*given, **env) as process:
            assert (await ask(given[0])).status == 200
            process.send_signal(signal.SIGTERM)
            out, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0
    assert b'"untold":"READY=1"' in out.replace(b" ", b"")


@pytest.mark.parametrize(
    ("environ", "every"),
    [
        ({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "30000000"}, 10.0),
        ({"NOTIFY_SOCKET": "/run/x"}, 0.0),
        ({"WATCHDOG_USEC": "30000000"}, 0.0),  # nobody to tell
        ({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "soon"}, 0.0),
        ({"NOTIFY_SOCKET": "vsock:2:1", "WATCHDOG_USEC": "30000000"}, 0.0),  # not of this machine
    ],
)
def test_signs_of_life_are_given_to_who_wants_them_of_us(environ, every):
    assert Manager.of(environ, emit=print).every == every


# -- the units ---------------------------------------------------------------------------


def test_the_service_is_given_as_many_sockets_as_it_listens_on():
    [listen] = [one for one in SERVICE["Environment"] if one.startswith("NOMBA_PROXY_LISTEN=")]
    expected = [f"fd:{at}" for at in range(3, 3 + len(SOCKET["ListenStream"]))]
    assert listen.partition("=")[2].split(",") == expected


def test_systemd_waits_longer_than_the_drain_may_take():
    given = dict(one.split("=", 1) for one in SERVICE["Environment"])
    limit = SettingsModel().drain.limit + float(given["NOMBA_PROXY_DRAIN_DELAY"])
    assert int(SERVICE["TimeoutStopSec"][0]) > limit + 10  # what is cut says so, workers are killed
    assert SERVICE["KillMode"] == ["mixed"]


def test_systemd_never_gives_up_one_that_crashes():
    interval, burst = 10, 5  # systemd's own: the fifth start within so many seconds is the last
    assert "StartLimitIntervalSec" not in unit("nomba-proxy.service")["Unit"]
    assert int(SERVICE["RestartSec"][0]) * (burst - 1) > interval
    assert SERVICE["RestartPreventExitStatus"] == ["2"]


def test_the_journal_drops_no_line_of_an_unknown_outcome():
    assert SERVICE["LogRateLimitIntervalSec"] == ["0"]


@pytest.fixture
def units(tmp_path):
    """The units where systemd-analyze can look at them: with a program that there is."""
    for file in (DEPLOY / "systemd").glob("nomba-proxy.*"):
        text = file.read_text().replace("/opt/nomba-proxy/bin/nomba-proxy", "/bin/true")
        (tmp_path / file.name).write_text(text)
    return tmp_path


def analyze(*arguments):
    command = [program("systemd-analyze", package="systemd"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_systemd_understands_every_line(units):
    every = [str(units / name) for name in ("nomba-proxy.service", "nomba-proxy.socket")]
    code, said = analyze("verify", *every)
    ours = [line for line in said.splitlines() if "nomba-proxy" in line]
    assert (code, ours) == (0, [])


def test_systemd_judges_the_hardening_to_be_good(units):
    # 1.4 of 10; what is left is the network, which it lives by, and other users, whom it knows.
    code, said = analyze(
        "security", "--offline=true", "--threshold=15", str(units / "nomba-proxy.service")
    )
    assert code == 0, said
