"""Every feature with marked secrets, and then a look everywhere they must not be."""

import asyncio
import base64
import json
from pathlib import Path

import aiohttp
import pytest
from harness import Proxy, read_reply, run, served

from proxy.simulator import Switches, parse_fault
from proxy.simulator.simulator import Simulator

SECRET = "MARKED-client-secret-0123456789"
SIGNING = "MARKED-signing-key-0123456789-0123456789"
BALANCE, TRANSFER = "/v1/accounts/balance", "/v2/transfers/bank"
ISSUE, REFRESH = "/v1/auth/token/issue", "/v1/auth/token/refresh"
REVOKE = "/v1/auth/token/revoke"


class Said:
    """Everything that was said, by where."""

    def __init__(self, address):
        host, _, port = address.rpartition(":")
        self._address = host, int(port)
        self.replies = []

    async def raw(self, request, *, head_only=False):
        reader, writer = await asyncio.open_connection(*self._address)
        writer.write(request)
        try:
            reply = await asyncio.wait_for(read_reply(reader, head_only=head_only), 30)
        except asyncio.IncompleteReadError as error:
            self.replies.append(error.partial)
            return None
        finally:
            writer.close()
            await writer.wait_closed()
        self.replies.append(reply.raw)
        return reply

    send = Proxy.send
    get = Proxy.get


def leaves(secrets, *texts):
    """The names of secrets that stand in a text: as they are, in Base64, in hex."""
    for name, secret in secrets.items():
        data = secret.encode()
        forms = {data, base64.b64encode(data)[:-4], data.hex().encode()}
        for text in texts:
            if any(form in text for form in forms):
                yield name


@pytest.fixture
async def marked():
    switches = Switches(client_secret=SECRET, rate_limit=0, recipient_limit=0)
    async with Simulator(switches) as simulator:
        yield simulator


async def test_no_secret_is_anywhere_it_must_not_be(marked, tmp_path):
    state = tmp_path / "state"
    env = {
        "NOMBA_BASE_URL": marked.origin,
        "NOMBA_CLIENT_ID": marked.switches.client_id,
        "NOMBA_CLIENT_SECRET": SECRET,
        "NOMBA_ACCOUNT_ID": marked.switches.account_id,
        "NOMBA_PROXY_STATE_DIR": str(state),
        "NOMBA_PROXY_CALLERS_SIGNING_KEY": SIGNING,
        "NOMBA_PROXY_LOG_LEVEL": "debug",
        "NOMBA_PROXY_BODY_MEMORY": "1KiB",
        "NOMBA_PROXY_TIMEOUTS_FIRST_BYTE": "0.3",
    }
    printed = []

    async def verb(*arguments):
        code, out, err = await run(*arguments, **env)
        printed.append((out + err).encode())
        return code, out

    code, key, _ = await run("caller", "add", "app", "--close-anonymous", "--role=no-money", **env)
    key = key.strip()
    assert code == 0
    marked.inject(parse_fault(f"reply path=/v1/auth/token/issue status=500 body={SECRET}"))
    async with served(**env) as proxy:
        said = Said(proxy.address)
        login = {"client_id": marked.switches.client_id, "client_secret": SECRET}
        pair = (await said.send("POST", ISSUE, body=json.dumps(login).encode())).json["data"]
        own = said.replies[:]  # what a caller is given is its own
        own_login = json.dumps({"client_id": "app", "client_secret": key}).encode()
        phantom = (await said.send("POST", ISSUE, body=own_login)).json["data"]["access_token"]
        body = json.dumps({"refresh_token": pair["refresh_token"]}).encode()
        second = (await said.send("POST", REFRESH, body=body)).json["data"]
        said.replies.clear()

        bearer = f"Authorization: Bearer {pair['access_token']}"
        with_key = f"X-Nomba-Proxy-Key: {key}"
        for _ in range(100):  # the first login at the upstream failed
            if (await said.get(BALANCE, with_key)).status == 200:
                break
            await asyncio.sleep(0.1)
        basic = f"Authorization: Basic {base64.b64encode(f'app:{key}'.encode()).decode()}"
        for how in (bearer, with_key, basic, f"Authorization: {phantom}", "X-Nothing: 1"):
            await said.get(f"{BALANCE}?token={key}&secret={SECRET}", how)
            await said.send("POST", TRANSFER, how, body=f'{{"pin":"{SECRET}"}}'.encode() * 99)
            await said.get(f"/v1/{SECRET}/%00", how)
            await said.get(BALANCE, how, "accountId: someone-else")
        for wrong in (f"Authorization: Bearer {SECRET}", f"X-Nomba-Proxy-Key: {key}x"):
            await said.get(BALANCE, wrong)
            await said.get(BALANCE, wrong, wrong)
        for faulty in (
            SECRET.encode(),
            f'{{"client_id":"{SECRET}","client_secret":"{key}"}}'.encode(),
        ):
            for path in (ISSUE, REFRESH, REVOKE):
                await said.send("POST", path, body=faulty)
        for malformed in (
            f"GET /\x01 HTTP/1.1\r\n{with_key}\r\n\r\n",
            f"GET / HTTP/1.1\r\n{with_key}\r\nBad Header: {SECRET}\r\n\r\n",
            f"{SECRET} / HTTP/1.1\r\n\r\n",
            f"GET http://u:{SECRET}@x/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
            f"POST /v1/x HTTP/1.1\r\nHost: localhost\r\n{with_key}\r\nTransfer-Encoding: chunked\r\n\r\n{SECRET}\r\n",
        ):
            await said.raw(malformed.encode("latin-1"))
        for fault in ("unauthorized", "garbage", "drop-after", "stall", "cut bytes=40"):
            marked.inject(parse_fault(f"{fault} path={BALANCE}"))
            await said.get(BALANCE, bearer)
        real = [
            call.header("Authorization").removeprefix("Bearer ") for call in marked.calls(BALANCE)
        ]
        marked.inject(parse_fault(f"reply path={BALANCE} status=200 content_type={real[-1]}"))
        await said.get(BALANCE, bearer)
        assert b"***" in said.replies[-1]

        admin = f"--admin-listen={proxy.admin}"
        for arguments in (("token", "show"), ("token", "renew"), ("token", "revoke")):
            for more in ((), ("--json",)):
                assert (await verb(*arguments, admin, *more))[0] == 0
        for arguments in (("check", "--show"), ("check", "--json"), ("caller", "list", "--json")):
            assert (await verb(*arguments))[0] == 0
        async with aiohttp.ClientSession(f"http://{proxy.admin}") as http:
            for path in ("/metrics", "/token", "/readyz?verbose", f"/{SECRET}"):
                async with http.get(path) as reply:
                    printed.append(await reply.read())
        body = json.dumps({"access_token": pair["access_token"]}).encode()
        assert (await said.send("POST", REVOKE, body=body)).status == 200
        arguments = Path(f"/proc/{proxy.process.pid}/cmdline").read_bytes()
        proxy.process.terminate()
        out, err = await asyncio.wait_for(proxy.process.communicate(), 30)

    secrets = {
        "the client secret": SECRET,
        "the signing key": SIGNING,
        "a caller's key": key,
        "a phantom token": pair["access_token"],
        "another": second["access_token"],
        "a caller's": phantom,
        "a refresh token": pair["refresh_token"],
        **{f"the real token {number}": token for number, token in enumerate(set(real))},
    }
    refreshes = [json.loads(call.body) for call in marked.calls(REFRESH)]
    secrets |= {f"refresh {at}": one["refresh_token"] for at, one in enumerate(refreshes)}
    assert len(set(real)) >= 2
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 2
    assert out.count(b"\n") > 30
    assert list(leaves(secrets, out)) == []
    assert list(leaves(secrets, err, proxy.banner.encode(), arguments, *printed)) == []
    assert list(leaves(secrets, *files)) == []
    assert list(leaves(secrets, *said.replies)) == []
    of_nomba = {
        name: text for name, text in secrets.items() if "the real" in name or "client" in name
    }
    assert list(leaves(of_nomba, *own)) == []
