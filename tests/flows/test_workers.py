"""`serve --workers N`: several processes that callers take for one."""

import asyncio
import json
import os
import re
import shutil
import signal
from collections import Counter
from pathlib import Path

import aiohttp
import pytest
from harness import read_reply, run, served, transfer_body
from processes import GET, parent, until

from proxy.simulator import parse_fault

ISSUE, REFRESH = "/v1/auth/token/issue", "/v1/auth/token/refresh"


def log_lines(tmp_path, event=None):
    data = (tmp_path / "log").read_bytes()
    lines = [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]
    return [line for line in lines if event in {None, line["event"]}]


# -- one session, one set of everything ------------------------------------------------------------


async def test_workers_log_in_once_and_print_one_banner(workers, simulator, tmp_path):
    async with workers() as proxy:
        await proxy.serving()
        assert len(proxy.pids) == 3
        assert "workers    3" in proxy.banner
        assert str(tmp_path / "state" / "sessions") in proxy.banner
    assert simulator.count(ISSUE) == 1
    assert proxy.process.returncode == 0


async def answered(proxy, count):
    """Wait until so many requests are counted: a worker does that once it has answered."""
    for _ in range(500):
        text = await proxy.asked("/metrics")
        found = re.findall(r"^nomba_proxy_requests_total\{.*2xx.*\} (.*)$", text, re.MULTILINE)
        if (counted := sum(map(float, found))) >= count:
            break
        await asyncio.sleep(0.02)
    assert counted == count


async def test_each_worker_gets_some_of_the_connections(workers, simulator):
    async with workers() as proxy:
        await proxy.serving()
        for pid in proxy.pids[1:]:
            os.kill(pid, signal.SIGSTOP)  # so those wait whom the kernel sends to these
        try:
            asking = [asyncio.create_task(proxy.get()) for _ in range(60)]
            await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait(asking, timeout=2)
            done = sum(task.done() for task in asking)
        finally:
            for pid in proxy.pids[1:]:
                os.kill(pid, signal.SIGCONT)
        assert {(await task).status for task in asking} == {200}
    assert 0 < done < 60


async def test_the_metrics_are_those_of_all_whichever_answers(workers):
    async with workers() as proxy:
        for _ in range(40):
            await proxy.get()
        await answered(proxy, 40)
        for _ in range(5):
            text = await proxy.asked("/metrics")
            counted = re.findall(
                r"^nomba_proxy_requests_total\{.*2xx.*\} (.*)$", text, re.MULTILINE
            )
            assert sum(map(float, counted)) == 40
            assert text.count("\nnomba_proxy_build_info{") == 1
            assert re.search(r'nomba_proxy_token_generation\{upstream="nomba"\} 1\.0', text)


async def test_metrics_outlive_the_workers_that_counted_them(workers):
    async with workers() as proxy:
        for _ in range(20):
            await proxy.get()
        await answered(proxy, 20)
        old = proxy.pids
        for pid in old:
            os.kill(pid, signal.SIGKILL)
        await proxy.replaced(*old, count=3)
        await proxy.serving()
        await answered(proxy, 50)
        text = await proxy.asked("/metrics")
    ended = re.findall(
        r'^nomba_proxy_processes_restarted_total\{process="(.*)"\} 1\.0', text, re.MULTILINE
    )
    assert sorted(ended) == ["worker 1", "worker 2", "worker 3"]


async def test_the_limits_of_a_caller_are_those_of_all_workers(workers, tmp_path):
    state = {"NOMBA_PROXY_STATE_DIR": str(tmp_path / "state")}
    limits = ("--rate=0.001", "--burst=5", "--keep-anonymous")
    code, out, _ = await run("caller", "add", "shop", *limits, "--json", **state)
    assert code == 0
    line = f"X-Nomba-Proxy-Key: {json.loads(out)['key']}\r\n\r\n".encode()
    async with workers() as proxy:
        statuses = Counter([(await proxy.get(GET[:-2] + line)).status for _ in range(30)])
        assert statuses == {200: 5, 429: 25}
        old = proxy.pids
        for pid in old:
            os.kill(pid, signal.SIGKILL)
        await proxy.replaced(*old, count=3)
        assert (await proxy.get(GET[:-2] + line)).status == 429


async def test_what_a_killed_worker_had_under_way_holds_no_place(workers, simulator, tmp_path):
    state = {"NOMBA_PROXY_STATE_DIR": str(tmp_path / "state")}
    limits = ("--concurrent=1", "--keep-anonymous")
    _, out, _ = await run("caller", "add", "shop", *limits, "--json", **state)
    keyed = GET[:-2] + f"X-Nomba-Proxy-Key: {json.loads(out)['key']}\r\n\r\n".encode()
    async with workers() as proxy:
        await proxy.serving()
        served = simulator.count("/v1/accounts/balance")
        simulator.inject(parse_fault("stall path=/v1/accounts/balance times=1"))
        asking = asyncio.create_task(proxy.get(keyed))
        await until(lambda: simulator.count("/v1/accounts/balance") > served)
        assert {(await proxy.get(keyed)).status for _ in range(10)} == {429}
        old = proxy.pids
        for pid in old:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asking
        await proxy.replaced(*old, count=3)
        assert (await proxy.get(keyed)).status == 200


async def test_one_inspector_shows_what_all_workers_do(workers):
    async with workers("--inspect", NOMBA_PROXY_INSPECT_LISTEN="127.0.0.1:0") as proxy:
        url = re.search(r"inspector +(\S+)", proxy.banner)[1]
        for number in range(30):
            request = GET.replace(b"balance", b"balance?n=%d" % number)
            assert (await proxy.get(request)).status == 200
        for _ in range(20):  # workers tell it a moment later
            code, out, _ = await run("tail", "--no-follow", "--last=50", "--json", "--url", url)
            rows = [json.loads(line) for line in out.splitlines()]
            if len(rows) >= 30:
                break
        base, _, token = url.partition("/?token=")
        headers = {"Authorization": f"Bearer {token}"}
        async with aiohttp.request("GET", f"{base}/api/sessions", headers=headers) as reply:
            [session] = (await reply.json())["sessions"]
    assert code == 0
    assert len(rows) == 30
    assert (session["state"], session["generation"]) == ("living", 1)
    assert [one["grant"] for one in session["renewals"]] == ["issue"]


async def test_an_inspector_that_is_killed_comes_back_at_the_same_address(workers):
    async with workers("--inspect", NOMBA_PROXY_INSPECT_LISTEN="127.0.0.1:0") as proxy:
        url = re.search(r"inspector +(\S+)", proxy.banner)[1]
        base, _, token = url.partition("/?token=")
        inspector = proxy.pids[0]
        os.kill(inspector, signal.SIGKILL)
        await proxy.replaced(inspector, count=4)
        headers = {"Authorization": f"Bearer {token}"}

        async def shown():
            assert (await proxy.get()).status == 200
            try:
                async with aiohttp.request("GET", f"{base}/api/exchanges", headers=headers) as got:
                    return (await got.json())["exchanges"]
            except aiohttp.ClientError:
                return []

        for _ in range(200):
            if rows := await shown():
                break
            await asyncio.sleep(0.05)
        assert rows


async def test_a_token_is_renewed_and_revoked_for_all(workers, simulator, tmp_path):
    async with workers() as proxy:
        await proxy.serving()
        common = ("--admin-listen", proxy.admin)
        assert (await run("token", "renew", *common))[0] == 0
        await proxy.serving()
        assert (simulator.count(ISSUE), simulator.count(REFRESH)) == (1, 1)
        assert (await run("token", "revoke", "--stop", *common))[0] == 0
        assert {(await proxy.get()).status for _ in range(30)} == {503}
        assert (await run("token", "renew", *common))[0] == 0
        await proxy.serving()
    assert simulator.count(ISSUE) == 2


# -- losing and replacing workers ------------------------------------------------------------------


async def test_a_killed_worker_is_replaced_and_costs_no_login(workers, simulator, tmp_path):
    async with workers() as proxy:
        await proxy.serving()
        for _ in range(4):
            victim = proxy.pids[0]
            os.kill(victim, signal.SIGKILL)
            await proxy.replaced(victim, count=3)
        await proxy.serving()
    assert simulator.count(ISSUE) == 1
    ended = log_lines(tmp_path, "process_ended")
    assert [line["exit_code"] for line in ended] == [-9] * 4


async def test_a_successor_knows_the_callers_of_now(workers, tmp_path):
    """Not only from its first look at their file on: a closed door would be open till then."""
    async with workers(count=2) as proxy:
        await proxy.serving()
        code, _, _ = await run(
            *("caller", "add", "billing", "--close-anonymous"),
            NOMBA_PROXY_STATE_DIR=str(tmp_path / "state"),
        )
        assert code == 0
        await until(lambda: len(log_lines(tmp_path, "callers_reloaded")) == 2)
        victim = proxy.pids[0]
        os.kill(victim, signal.SIGKILL)
        await proxy.replaced(victim, count=2)
        assert {(await proxy.get()).status for _ in range(60)} == {401}


@pytest.mark.parametrize("end", ["bad", "gone", "empty"])
async def test_a_worker_that_starts_without_a_callers_file_knows_what_the_others_knew(
    workers, tmp_path, end
):
    file = tmp_path / "state" / "callers.toml"
    env = {"NOMBA_PROXY_STATE_DIR": str(tmp_path / "state")}
    code, out, _ = await run("caller", "add", "bob", "--close-anonymous", "--json", **env)
    assert code == 0
    request = GET[:-2] + f"X-Nomba-Proxy-Key: {json.loads(out)['key']}\r\n\r\n".encode()
    async with workers(count=2) as proxy:
        code, _, err = await run("caller", "remove", "bob", **env)
        assert code == 0, err
        await until(lambda: len(log_lines(tmp_path, "callers_reloaded")) == 2)
        if end == "gone":
            file.unlink()
        else:
            file.write_text("" if end == "empty" else "[[caller")
        if end != "empty":  # as they know it already: nobody is there
            await until(lambda: len(log_lines(tmp_path, "callers_not_reloaded")) == 2)
        for _ in range(2):
            victim = proxy.pids[0]
            os.kill(victim, signal.SIGKILL)
            await proxy.replaced(victim, count=2)
        for one in (request, GET):
            assert {(await proxy.get(one)).status for _ in range(30)} == {401}


async def test_the_one_that_is_renewing_can_be_killed(workers, simulator):
    """Half of the time the issuer has done its work, and nobody knows the new token."""
    async with workers() as proxy:
        await proxy.serving()
        for before in (True, False):
            renewals = simulator.count(ISSUE)
            simulator.inject(parse_fault(f"stall path={ISSUE} work={str(not before).lower()}"))
            simulator.revoke()
            # So many that not all of them are the one's that is killed.
            asking = [asyncio.create_task(proxy.get()) for _ in range(24)]
            await until(lambda expected=renewals + 1: simulator.count(ISSUE) == expected)
            victims = proxy.pids
            for pid in victims:  # whoever it is
                if holds_lock(pid):
                    os.kill(pid, signal.SIGKILL)
                    break
            results = await asyncio.gather(*asking, return_exceptions=True)
            statuses = Counter(
                "lost" if isinstance(one, Exception) else one.status for one in results
            )
            assert set(statuses) <= {200, "lost"}
            assert statuses[200] > 0
            await proxy.replaced(pid, count=3)
            await proxy.serving()
            assert simulator.count(ISSUE) - renewals == 2  # the lost one, and one more


def holds_lock(pid):
    """Whether a process holds a lock on a file."""
    return any(
        line.split()[1:4:2] == ["FLOCK", "WRITE"] and int(line.split()[4]) == pid
        for line in Path("/proc/locks").read_text().splitlines()
        if "->" not in line
    )


async def test_a_worker_that_is_told_to_stop_finishes_its_work_and_has_a_successor(
    workers, simulator, tmp_path
):
    async with workers() as proxy:
        await proxy.serving()
        simulator.fail("/v1/accounts/balance", delay=1.0, times=100)
        asking = [asyncio.create_task(proxy.get()) for _ in range(20)]
        await until(lambda: simulator.count("/v1/accounts/balance") >= 50)
        victim = proxy.pids[1]
        os.kill(victim, signal.SIGTERM)
        assert {(await one).status for one in asking} == {200}
        await proxy.replaced(victim, count=3)
    assert simulator.count(ISSUE) == 1
    assert not log_lines(tmp_path, "process_ended")


async def test_hup_restarts_one_worker_after_another(workers, simulator):
    async with workers() as proxy:
        await proxy.serving()
        old = proxy.pids
        proxy.process.send_signal(signal.SIGHUP)
        fewest = 3
        while set(old) & set(proxy.pids):
            fewest = min(fewest, len(proxy.pids))
            assert (await proxy.get()).status == 200
        assert fewest >= 2
        await until(lambda: len(proxy.pids) == 3)
        await proxy.serving()
    assert simulator.count(ISSUE) == 1


async def test_nobody_waits_for_a_worker_that_kept_ending(workers, tmp_path):
    """While it is not there, and once it is back: its socket is nobody else's."""
    async with workers("--inspect", NOMBA_PROXY_INSPECT_LISTEN="127.0.0.1:0") as proxy:
        await proxy.serving()
        for count in range(1, 7):
            victim = proxy.pids[-1]
            os.kill(victim, signal.SIGKILL)
            await until(lambda n=count: len(log_lines(tmp_path, "process_ended")) == n)
            if len(proxy.pids) == 3:  # it is waited for longer and longer
                assert [(await proxy.get()).status for _ in range(30)] == [200] * 30
            await until(lambda: len(proxy.pids) == 4)
        await proxy.serving()


async def test_a_temporary_folder_that_was_removed_costs_no_request(workers, tmp_path):
    async with workers(TMPDIR=str(tmp_path)) as proxy:
        await proxy.serving()
        [folder] = tmp_path.glob("nomba-proxy-*")
        shutil.rmtree(folder)
        victim = proxy.pids[0]
        os.kill(victim, signal.SIGKILL)
        await proxy.replaced(victim, count=3)
        await proxy.serving()
        assert "nomba_proxy_build_info" in await proxy.asked("/metrics")
    assert proxy.process.returncode == 0


async def test_a_full_temporary_folder_is_said_and_ends_nothing_that_runs(workers, tmp_path):
    """The metrics of a new worker have no room: it does not start, and the others go on."""
    async with workers(TMPDIR=str(tmp_path)) as proxy:
        await proxy.serving()
        [folder] = tmp_path.glob("nomba-proxy-*")
        kept = f"{folder}/counter_worker-1-"  # whoever has that mapped is the one
        [victim] = [pid for pid in proxy.pids if kept in Path(f"/proc/{pid}/maps").read_text()]
        for at in range(8):  # where its successors would put them
            (folder / f"counter_worker-1-{at}.db").unlink(missing_ok=True)
            (folder / f"counter_worker-1-{at}.db").mkdir()
        os.kill(victim, signal.SIGKILL)
        await until(lambda: len(log_lines(tmp_path, "process_ended")) >= 3)
        assert "metrics cannot be kept" in log_lines(tmp_path, "process_ended")[-1]["reason"]
        assert len(set(proxy.pids) - {victim}) >= 2


# -- the beginning and the end ---------------------------------------------------------------------


async def test_a_signal_to_every_process_cuts_nothing(workers, simulator):
    """As systemd sends it; the supervisor sends it to the workers too."""
    async with workers() as proxy:
        await proxy.serving()
        simulator.fail("/v1/accounts/balance", delay=1.0, times=100)
        asking = [asyncio.create_task(proxy.get()) for _ in range(10)]
        await until(lambda: simulator.count("/v1/accounts/balance") >= 40)
        for pid in [proxy.process.pid, *proxy.pids]:
            os.kill(pid, signal.SIGTERM)
        assert {(await one).status for one in asking} == {200}
        assert await asyncio.wait_for(proxy.process.wait(), 20) == 0


async def test_nobody_listens_where_another_proxy_does(workers, simulator):
    async with workers() as proxy:
        listen = f"--listen=127.0.0.1:{proxy.port}"
        code, _, err = await run(
            *("serve", "--simulate", "--workers=2", listen, "--admin-listen=127.0.0.1:0")
        )
        assert code == 1
        assert "listen = " in err
        assert "Another process may be listening" in err
        assert (await proxy.get()).status == 200
    assert simulator.count(ISSUE) == 1


async def test_a_worker_that_cannot_start_is_said_and_ends_it_all(tmp_path):
    (tmp_path / "sessions").write_text("")
    env = {"NOMBA_PROXY_STORE": f"file:{tmp_path}/sessions", "NOMBA_PROXY_STATE_DIR": str(tmp_path)}
    code, _, err = await run(
        *("serve", "--simulate", "--workers=2", "--listen=127.0.0.1:0"),
        "--admin-listen=127.0.0.1:0",
        **env,
    )
    assert code == 2
    assert "sessions" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_all_after_their_work(workers, simulator, number, tmp_path):
    async with workers() as proxy:
        await proxy.serving()
        pids = proxy.pids
        idle = [await asyncio.open_connection("127.0.0.1", proxy.port) for _ in range(30)]
        for reader, writer in idle:  # so many that each worker has some
            writer.write(GET)
            assert (await read_reply(reader)).status == 200
        with simulator.hold("/v1/accounts/balance") as hold:
            asking = [asyncio.create_task(proxy.get()) for _ in range(10)]
            await hold.caught(10)
            proxy.process.send_signal(number)
            for reader, writer in idle:  # all of them have heard of it
                assert await asyncio.wait_for(reader.read(), 20) == b""
                writer.close()
        replies = [await one for one in asking]
        assert {one.status for one in replies} == {200}
        assert {one.get("Connection") for one in replies} == {"close"}
        assert await asyncio.wait_for(proxy.process.wait(), 20) == 0
    assert not [pid for pid in pids if parent(pid)]
    assert len(log_lines(tmp_path, "draining")) == 1


async def test_a_second_signal_cuts_what_is_under_way(workers, simulator, tmp_path):
    async with workers() as proxy:
        await proxy.serving()
        simulator.inject(parse_fault("stall path=/v2/transfers/bank"))
        body = transfer_body()
        head = b"POST /v2/transfers/bank HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
        asking = asyncio.create_task(proxy.get(head % len(body) + body))
        await until(lambda: simulator.count("/v2/transfers/bank") == 1)
        proxy.process.send_signal(signal.SIGTERM)
        await until(lambda: log_lines(tmp_path, "draining"))
        proxy.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(proxy.process.wait(), 20) == 1
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asking
    [cut] = [line for line in log_lines(tmp_path, "exchange") if line["kind"] == "money"]
    assert (cut["outcome"], cut["error"]) == ("unknown", "cancelled")


async def test_workers_end_when_their_supervisor_is_killed(workers, simulator):
    async with workers() as proxy:
        await proxy.serving()
        pids = proxy.pids
        proxy.process.kill()
        await proxy.process.wait()
        await until(lambda: not [pid for pid in pids if parent(pid)])
        with pytest.raises(ConnectionError):
            await asyncio.open_connection("127.0.0.1", proxy.port)


async def test_the_token_is_revoked_once_when_all_have_ended(workers, simulator):
    async with workers(NOMBA_PROXY_TOKEN_REVOKE_AT_SHUTDOWN="true") as proxy:
        await proxy.serving()
        victim = proxy.pids[0]
        os.kill(victim, signal.SIGTERM)
        await proxy.replaced(victim, count=3)
        await proxy.serving()
        assert simulator.count("/v1/auth/token/revoke") == 0
    assert simulator.count("/v1/auth/token/revoke") == 1
    assert simulator.count(ISSUE) == 1


async def test_a_restart_of_the_whole_does_not_log_in_again(workers, simulator):
    for _ in range(2):
        async with workers() as proxy:
            await proxy.serving()
    assert simulator.count(ISSUE) == 1


async def test_with_the_simulator_all_workers_have_the_same_one():
    async with served("--simulate", "--workers=2") as proxy:
        port = int(proxy.address.rpartition(":")[2])
        body = transfer_body("only-once")
        head = b"POST /v2/transfers/bank HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
        outcomes = Counter()
        for _ in range(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head % len(body) + body)
            outcomes[(await read_reply(reader)).json["code"]] += 1
            writer.close()
    assert sum(outcomes.values()) == 10
    assert outcomes["200"] + outcomes["201"] == 1  # the others repeat a reference


async def test_a_worker_that_is_killed_while_it_ends_is_told_of(workers, tmp_path):
    async with workers(count=2, NOMBA_PROXY_DRAIN_LIMIT="20") as proxy:
        _, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"GET /v1/x HT")  # is waited for
        proxy.process.terminate()
        await until(lambda: log_lines(tmp_path, "draining") and len(proxy.pids) == 1)
        proxy.process.send_signal(signal.SIGHUP)  # says nothing to who is ending
        await asyncio.sleep(0.2)
        os.kill(proxy.pids[0], signal.SIGKILL)
        await asyncio.wait_for(proxy.process.wait(), 20)
        writer.close()
    (ended,) = log_lines(tmp_path, "process_ended")
    assert ended["exit_code"] == -signal.SIGKILL
    assert "in no log line" in ended["reason"]
    assert not log_lines(tmp_path, "restarting")
