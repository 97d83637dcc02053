"""Settings that change while the proxy runs: all of a file or nothing of it, and nobody is cut off."""

import asyncio
import json
import os
import signal

import aiohttp
import pytest
from harness import read_reply, run, spawned
from processes import until

GET = b"GET /v1/accounts/balance HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Configured:
    """A proxy process with a settings file that the test changes."""

    def __init__(self, process, banner, file, log):
        self.process = process
        self.file = file
        self._log = log
        where = banner.partition("listening  http://")[2]
        self.address = where.partition(" ")[0].split(":")
        self.admin = banner.partition("(admin ")[2].partition(")")[0]

    def lines(self, event):
        text = self._log.read_text()
        whole = text[: text.rfind("\n") + 1]  # the last line may be on its way
        every = [json.loads(line) for line in whole.splitlines()]
        return [line for line in every if line["event"] == event]

    def write(self, text):
        self.file.write_text(text)

    async def reload(self, *, by="post"):
        """The status and what was said, for a signal from the log."""
        if by == "post":
            async with aiohttp.request("POST", f"{self.admin}/-/reload") as reply:
                return reply.status, await reply.json()
        before = len(self.lines("reloaded")) + len(self.lines("reload_failed"))
        self.process.send_signal(signal.SIGHUP)
        told = await until(
            lambda: (
                (every := self.lines("reloaded") + self.lines("reload_failed"))
                and len(every) > before
                and max(every, key=lambda one: one["timestamp"])
            )
        )
        return (200 if told["event"] == "reloaded" else 400), told

    async def ask(self, request=GET, *headers):
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            if headers:
                request = request[:-2] + "".join(f"{one}\r\n" for one in headers).encode() + b"\r\n"
            writer.write(request)
            return await asyncio.wait_for(read_reply(reader), 20)
        finally:
            writer.close()


@pytest.fixture
async def configured(tmp_path):
    opened = []

    async def begin(text, *flags, workers=1, **env):
        file, log = tmp_path / "proxy.toml", tmp_path / "log"
        file.write_text(text)
        stdout = log.open("ab")
        arguments = (f"--config={file}", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0")
        own = {"NOMBA_PROXY_STATE_DIR": str(tmp_path / "state"), "NOMBA_PROXY_INSPECT": "false"}
        options = {"stdout": stdout, "NOMBA_PROXY_LOG_FORMAT": "json", **own, **env}
        managed = spawned(
            "serve", "--simulate", f"--workers={workers}", *arguments, *flags, **options
        )
        process, banner = await managed.__aenter__()
        opened.append((managed, stdout))
        proxy = Configured(process, banner, file, log)
        while (await proxy.ask()).status != 200:
            await asyncio.sleep(0.05)
        return proxy

    yield begin
    for managed, stdout in opened:
        await managed.__aexit__(None, None, None)
        stdout.close()


@pytest.mark.parametrize("workers", [1, 2])
async def test_where_nothing_has_changed_nothing_needs_a_restart(configured, workers):
    proxy = await configured("", workers=workers)
    assert await proxy.reload() == (200, {"changed": [], "restart": []})
    told = await until(lambda: proxy.lines("reloaded"))
    assert [one["level"] for one in told] == ["info"]


@pytest.mark.parametrize("by", ["post", "signal"])
async def test_what_has_changed_holds_and_open_connections_go_on(configured, by):
    proxy = await configured("")
    reader, writer = await asyncio.open_connection(*proxy.address)
    writer.write(GET)
    assert (await read_reply(reader)).status == 200
    proxy.write(
        '[body]\nlimit = 10\nmemory = 10\n[callers]\nhead_fields = 9\n[log]\nlevel = "debug"\n'
    )
    status, told = await proxy.reload(by=by)
    changed = {"body.limit", "body.memory", "callers.head_fields", "log.level"}
    assert (status, set(told["changed"]), told["restart"]) == (200, changed, [])
    body = GET.replace(b"GET", b"POST")[:-2] + b"Content-Length: 11\r\n\r\n" + b"x" * 11
    writer.write(GET)  # over the connection of before, with a head that it remembers
    assert (await read_reply(reader)).status == 200
    writer.close()
    assert (await proxy.ask(body)).status == 413
    assert (await proxy.ask(GET, *(f"X-{n}: y" for n in range(10)))).status == 431
    # The session goes on: nobody has logged in again.
    assert len([one for one in proxy.lines("token_renewed") if one["grant"] == "issue"]) == 1


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("by", ["post", "signal"])
async def test_a_bad_file_changes_nothing_and_says_what_is_wrong(configured, by, workers):
    proxy = await configured("[body]\nlimit = 10\nmemory = 10\n", workers=workers)
    proxy.write('[body]\nlimit = 20\nmemory = 20\n[log]\nlevel = "loud"\n')
    status, told = await proxy.reload(by=by)
    assert status == 400
    assert "log.level" in (told["error"] if by == "post" else told["reason"])
    await until(lambda: len(proxy.lines("reload_failed")) == 1)
    body = GET.replace(b"GET", b"POST")[:-2] + b"Content-Length: 11\r\n\r\n" + b"x" * 11
    assert (await proxy.ask(body)).status == 413
    assert proxy.lines("restarting") == []
    proxy.write("[body]\nlimit = 20\nmemory = 20\n")
    assert (await proxy.reload(by=by))[0] == 200


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("by", ["post", "signal"])
async def test_a_name_that_no_file_can_have_ends_nothing(configured, by, workers):
    proxy = await configured("", workers=workers)
    proxy.write(f'[callers]\nfile = "{"a" * 300}"\n')
    status, told = await proxy.reload(by=by)
    assert status == 400
    assert "callers.file" in (told["error"] if by == "post" else told["reason"])
    assert (await proxy.ask()).status == 200
    assert proxy.process.returncode is None


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("by", ["post", "signal"])
async def test_the_metrics_say_whether_the_last_reload_was_taken_over(configured, by, workers):
    proxy = await configured("", workers=workers)

    async def come(expected):
        for _ in range(500):
            async with aiohttp.request("GET", f"{proxy.admin}/metrics") as reply:
                text = await reply.text()
            if f"\nnomba_proxy_config_last_reload_successful {expected}\n" in text:
                return "nomba_proxy_config_last_reload_success_timestamp_seconds" in text
            await asyncio.sleep(0.02)
        raise AssertionError(f"it did not become {expected}")

    assert await come("1.0") is False
    proxy.write('[log]\nlevel = "loud"\n')
    assert (await proxy.reload(by=by))[0] == 400
    assert await come("0.0") is False
    proxy.write('[log]\nlevel = "info"\n')
    assert (await proxy.reload(by=by))[0] == 200
    assert await come("1.0") is True


async def test_traces_timing_and_the_share_of_lines_are_taken_over(configured):
    proxy = await configured("")
    assert (await proxy.ask()).get("Server-Timing") is None
    proxy.write('[headers]\ntrace = "start"\nserver_timing = true\n[log]\nsample = 0\n')
    _, told = await proxy.reload()
    assert set(told["changed"]) == {"headers.trace", "headers.server_timing", "log.sample"}
    before = len(proxy.lines("exchange"))
    assert (await proxy.ask()).get("Server-Timing")
    assert (await proxy.ask(GET.replace(b"GET", b"PUT"))).status >= 400
    [line] = await until(lambda: proxy.lines("exchange")[before:])
    assert line["method"] == "PUT"
    assert len(line["trace_id"]) == 32


@pytest.mark.parametrize(("by", "workers"), [("post", 1), ("signal", 1), ("post", 2)])
async def test_a_running_proxy_waits_for_no_pipe(configured, by, workers):
    proxy = await configured("", workers=workers)
    proxy.file.unlink()
    os.mkfifo(proxy.file)
    try:
        status, told = await asyncio.wait_for(proxy.reload(by=by), 20)
    finally:  # whoever waits for a writer has one now
        os.close(os.open(proxy.file, os.O_RDWR))
        proxy.file.unlink()
    assert status == 400
    assert "no regular file" in str(told)
    assert "start the proxy anew" in str(told)
    assert (await proxy.ask()).status == 200
    proxy.write("[headers]\nserver_timing = true\n")
    status, told = await proxy.reload(by=by)
    assert (status, told["changed"]) == (200, ["headers.server_timing"])


async def test_settings_may_come_through_a_pipe_once(tmp_path):
    """As of `--config <(…)` at a shell."""
    pipe, log = tmp_path / "pipe", tmp_path / "log"
    os.mkfifo(pipe)
    writing = asyncio.create_task(
        asyncio.to_thread(pipe.write_text, "[headers]\nserver_timing = true\n")
    )
    env = {"NOMBA_PROXY_STATE_DIR": str(tmp_path / "state"), "NOMBA_PROXY_INSPECT": "false"}
    flags = (f"--config={pipe}", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0")
    with log.open("ab") as stdout:
        begun = spawned(
            "serve", "--simulate", *flags, stdout=stdout, NOMBA_PROXY_LOG_FORMAT="json", **env
        )
        async with begun as (process, banner):
            await writing
            proxy = Configured(process, banner, pipe, log)
            while (reply := await proxy.ask()).status != 200:
                await asyncio.sleep(0.05)
            assert "Server-Timing" in dict(reply.headers)
            status, told = await asyncio.wait_for(proxy.reload(), 20)
            assert (status, "no regular file" in str(told)) == (400, True)
            assert "Server-Timing" in dict((await proxy.ask()).headers)


async def test_what_needs_a_restart_is_named_and_not_taken_over(configured):
    proxy = await configured("")
    proxy.write("workers = 4\n[token]\nearly = 9\n[body]\nstall_timeout = 3\n")
    _, told = await proxy.reload()
    assert told["changed"] == ["body.stall_timeout"]
    # The flag that it was started with wins over the file.
    assert told["restart"] == ["token.early"]
    [line] = proxy.lines("reloaded")
    assert (line["level"], line["restart"]) == ("warning", ["token.early"])


async def test_another_admin_token_is_asked_for(configured, tmp_path):
    async def renew(token):
        headers = {"Authorization": f"Bearer {token}"}
        async with aiohttp.request("POST", f"{proxy.admin}/token/renew", headers=headers) as reply:
            return reply.status

    tokens = {name: name * 32 for name in "ab"}
    for name, token in tokens.items():
        (tmp_path / name).write_text(token)
        (tmp_path / name).chmod(0o600)
    text = f'[admin]\ntoken_file = "{tmp_path}/a"\n'
    proxy = await configured(text)
    proxy.write(text.replace("/a", "/b"))
    _, told = await proxy.reload(by="signal")
    assert (told["restart"], "admin.token_file" in told["changed"]) == ([], True)
    assert (await renew(tokens["a"]), await renew(tokens["b"])) == (401, 200)


@pytest.mark.parametrize("workers", [1, 2])
async def test_callers_of_the_settings_file_come_and_go(configured, tmp_path, workers):
    proxy = await configured("", workers=workers)
    other = tmp_path / "other.toml"
    code, out, _ = await run(
        *("caller", "add", "billing", "--keep-anonymous", "--json"),
        NOMBA_PROXY_CALLERS_FILE=str(other),
    )
    assert code == 0
    key = json.loads(out)["key"]
    digest = next(line for line in other.read_text().splitlines() if line.startswith("secrets"))
    with_key = f"X-Nomba-Proxy-Key: {key}"
    assert (await proxy.ask(GET, with_key)).status == 401
    proxy.write(f'[[caller]]\nname = "billing"\n{digest}\nrole = "read-only"\n')
    status, told = await proxy.reload()
    assert (status, told["changed"]) == (200, ["caller billing"])

    async def allowed():
        return (await proxy.ask(GET, with_key)).status == 200

    for _ in range(400):  # workers are replaced one after another
        if await allowed() and await allowed():
            break
        await asyncio.sleep(0.05)
    else:
        raise AssertionError("it is not known")
    proxy.write("")
    await proxy.reload()
    for _ in range(400):
        if not await allowed() and not await allowed():
            break
        await asyncio.sleep(0.05)
    else:
        raise AssertionError("it is known still")


async def test_another_callers_file_is_taken_over_and_watched(configured, tmp_path):
    keys = {}
    for name in ("one", "two"):
        code, out, _ = await run(
            *("caller", "add", name, "--close-anonymous", "--json"),
            NOMBA_PROXY_CALLERS_FILE=str(tmp_path / name),
        )
        assert code == 0
        keys[name] = f"X-Nomba-Proxy-Key: {json.loads(out)['key']}"
    other = tmp_path / "two"
    kept = other.read_text()
    proxy = await configured(f'[callers]\nfile = "{tmp_path / "one"}"\nanonymous = true\n')
    proxy.write(f'[callers]\nfile = "{other}"\nanonymous = true\n')
    status, told = await proxy.reload()
    changed = {"callers.file", "caller one", "caller two"}
    assert (status, set(told["changed"]), told["restart"]) == (200, changed, [])

    async def until_two_gets(status):
        for _ in range(200):
            if (await proxy.ask(GET, keys["two"])).status == status:
                return
            await asyncio.sleep(0.05)
        raise AssertionError("the file is not looked at")

    assert (await proxy.ask(GET, keys["one"])).status == 401
    await until_two_gets(200)
    await asyncio.sleep(1.5)  # the first look at the new file is over
    other.write_text(kept.replace("[[caller]]", "[[caller]]\nenabled = false"))
    await until_two_gets(401)


@pytest.mark.parametrize("workers", [1, 2])
async def test_an_empty_callers_file_opens_no_door(configured, tmp_path, workers):
    """It may be what is there for a moment of one that is being written."""
    file = tmp_path / "callers.toml"
    code, _, _ = await run(
        *("caller", "add", "billing", "--close-anonymous"), NOMBA_PROXY_CALLERS_FILE=str(file)
    )
    assert code == 0
    file.rename(tmp_path / "kept")
    file.write_text("")
    proxy = await configured(f'[callers]\nfile = "{file}"\n', workers=workers)
    file.write_text((tmp_path / "kept").read_text())
    assert (await proxy.reload())[0] == 200

    async def answers():
        return {(await proxy.ask()).status for _ in range(8)}

    for _ in range(200):
        if await answers() == {401}:
            break
        await asyncio.sleep(0.05)
    if workers > 1:
        await until(lambda: proxy.lines("restarted"))
    file.write_text("")
    assert (await proxy.reload())[0] == 200
    if workers > 1:
        await until(lambda: len(proxy.lines("restarted")) == 2)
    assert await answers() == {401}


async def test_workers_take_settings_over_and_lose_nothing(configured, tmp_path):
    # The simulator takes 40 requests a second otherwise.
    proxy = await configured("", workers=2, NOMBA_PROXY_SIMULATOR_RATE_LIMIT="0")
    answers, done = [], asyncio.Event()

    async def call():
        while not done.is_set():
            try:
                answers.append((await proxy.ask()).status)
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                answers.append(repr(error))

    calling = [asyncio.create_task(call()) for _ in range(4)]
    proxy.write("[body]\nlimit = 10\nmemory = 10\n")
    status, told = await proxy.reload(by="signal")
    assert (status, told["changed"]) == (200, ["body.limit", "body.memory"])
    body = GET.replace(b"GET", b"POST")[:-2] + b"Content-Length: 11\r\n\r\n" + b"x" * 11
    for _ in range(400):
        if {(await proxy.ask(body)).status for _ in range(4)} == {413}:
            break
        await asyncio.sleep(0.05)
    else:
        raise AssertionError("it was not taken over")
    done.set()
    await asyncio.gather(*calling)
    assert set(answers) == {200}
    issued = [one for one in proxy.lines("token_renewed") if one["grant"] == "issue"]
    assert len(issued) == 1


async def test_what_is_read_while_workers_are_replaced_holds_in_the_end(configured):
    proxy = await configured("[body]\nlimit = 5\nmemory = 5\n", workers=2)
    body = GET.replace(b"GET", b"POST")[:-2] + b"Content-Length: 11\r\n\r\n" + b"x" * 11
    assert (await proxy.ask(body)).status == 413
    proxy.write("[body]\nlimit = 6\nmemory = 6\n")
    assert (await proxy.reload())[0] == 200
    await until(lambda: len(proxy.lines("restarting")) == 1)
    for limit in (7, 20):
        proxy.write(f"[body]\nlimit = {limit}\nmemory = {limit}\n")
        assert (await proxy.reload(by="signal"))[0] == 200
    for _ in range(100):
        if 413 not in {(await proxy.ask(body)).status for _ in range(8)}:
            return
        await asyncio.sleep(0.1)
    raise AssertionError("some workers have what was read first")


async def test_the_token_of_the_admin_listener_changes_with_its_file(configured, tmp_path):
    token = tmp_path / "token"
    token.write_text("a" * 32)
    proxy = await configured("", NOMBA_PROXY_ADMIN_TOKEN_FILE=str(token))

    async def post(with_token):
        headers = {"Authorization": f"Bearer {with_token}"}
        async with aiohttp.request("POST", f"{proxy.admin}/-/reload", headers=headers) as reply:
            return reply.status

    assert await post("b" * 32) == 401
    token.write_text("b" * 32)
    assert await post("b" * 32) == 401
    assert await post("a" * 32) == 200
    assert await post("a" * 32) == 401
    assert await post("b" * 32) == 200
    show = ("token", "show", f"--admin-listen={proxy.admin.removeprefix('http://')}")
    code, out, _ = await run(*show, NOMBA_PROXY_ADMIN_TOKEN_FILE=str(token))
    assert code == 0
    assert "generation 1" in out
    for environment in ({}, {"NOMBA_PROXY_ADMIN_TOKEN": "c" * 32}):
        code, out, err = await run(*show, **environment)
        assert (code, out) == (1, "")
        assert "takes who has the proxy's admin token only" in err
        assert "Set NOMBA_PROXY_ADMIN_TOKEN_FILE" in err


async def test_the_admin_listener_on_a_unix_socket_is_asked_by_the_verbs(tmp_path):
    path = tmp_path / "admin.sock"
    flags = ("--simulate", "--listen=127.0.0.1:0", f"--admin-listen=unix://{path}")
    async with spawned("serve", *flags, NOMBA_PROXY_INSPECT="false") as (_, banner):
        assert f"(admin unix://{path})" in banner
        assert path.stat().st_mode & 0o777 == 0o600
        for _ in range(200):
            code, out, err = await run("token", "show", f"--admin-listen=unix://{path}")
            if "living" in out:
                break
        assert (code, err) == (0, "")
    assert not path.exists()
    code, _, err = await run("token", "show", f"--admin-listen=unix://{path}")
    assert code == 1
    assert f"no proxy answers on unix://{path}" in err


async def test_what_was_decided_of_a_head_does_not_outlive_a_reload(
    start_proxy, upstream, tmp_path
):
    file = tmp_path / "proxy.toml"
    file.write_text("")
    proxy = await start_proxy(
        base_url=upstream.origin,
        env={"NOMBA_PROXY_CONFIG": str(file)},
        callers__accept_upstream_credentials="false",  # else what they are told ends it as well
    )

    async def answer(head, body, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    upstream.answer = answer
    reader, writer = await asyncio.open_connection(*proxy.address)
    own = GET[:-2] + b"accountId: another\r\n\r\n"
    await proxy.running.reload()  # from here on the callers are the same: only the upstream changes
    for _ in range(2):
        writer.write(own)
        assert (await read_reply(reader)).status == 200
    file.write_text('[[upstream]]\naccount_policy = "allow"\naccount_allow = ["another"]\n')
    told = await proxy.running.reload()
    assert told["restart"] == []
    writer.write(own)
    assert (await read_reply(reader)).status == 200
    writer.close()
    assert [b"accountId: another" in head for head, _ in upstream.requests] == [False, False, True]
