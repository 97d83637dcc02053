"""Apps that call https://api.nomba.com, led here by a hosts entry, TLS verified.

All of it is on one machine of the test's own (`alone`), as with a sidecar: the apps, the proxy on
port 443, a DNS server, and the simulator behind TLS, which stands in for Nomba on 127.0.0.2.
"""

import asyncio
import json
import ssl
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from alone import Dns, alone
from harness import read_reply, run, spawned, transfer_body
from playing import RUN, missing, started
from processes import until

from proxy.simulator import Switches
from proxy.simulator.simulator import Simulator

NOMBA = "https://api.nomba.com"
HOSTS = "127.0.0.1 api.nomba.com"
BALANCE = "/v1/accounts/balance"
ISSUE = "/v1/auth/token/issue"
CALLS = 3


class House:
    """What stands on that machine, for as long as a test's function runs."""

    def __init__(self, folder, simulator, dns, trusted) -> None:
        self.folder = folder
        self.simulator = simulator
        self.dns = dns
        self._trusted = trusted  # by the proxy: Nomba's CA, here a throw-away one
        self.owner = {
            "NOMBA_CLIENT_ID": simulator.switches.client_id,
            "NOMBA_CLIENT_SECRET": simulator.switches.client_secret,
            "NOMBA_ACCOUNT_ID": simulator.switches.account_id,
        }
        self.ca = folder / "certs" / "ca.pem"
        self.log = folder / "log"

    @asynccontextmanager
    async def proxy(self, *arguments, trusts_itself=False, **env):
        """`nomba-proxy serve` as `nomba-proxy certs` says."""
        trusted = self.folder / "trusted.pem"
        trusted.write_text(self._trusted + (self.ca.read_text() if trusts_itself else ""))
        settings = {
            "NOMBA_PROXY_LISTEN": "https://127.0.0.1:443",
            "NOMBA_PROXY_TLS_CERT_FILE": str(self.ca.with_name("cert.pem")),
            "NOMBA_PROXY_TLS_KEY_FILE": str(self.ca.with_name("key.pem")),
            "NOMBA_PROXY_ADMIN_LISTEN": "127.0.0.1:0",
            "NOMBA_PROXY_STATE_DIR": str(self.folder / "state"),
            "NOMBA_PROXY_LOG_FORMAT": "json",
            "NOMBA_PROXY_UPSTREAM_CA_FILE": str(trusted),
            "NOMBA_ENVIRONMENT": "production",
            "NOMBA_PROXY_CALLERS_ANONYMOUS": "false",
        }
        with self.log.open("ab") as log:
            everything = self.owner | settings | env
            async with spawned("serve", *arguments, stdout=log, **everything):
                yield

    async def app(self, name, *, url=NOMBA, trusting=True):
        """Run an app: exit code, statuses, stderr."""
        trust = dict.fromkeys(
            ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"), str(self.ca)
        )
        trust = trust if trusting else {}
        code, out, err = await started(url, name, calls=CALLS, **self.owner, **trust)
        return {"code": code, "statuses": json.loads(out or "[]"), "err": err[-2000:]}

    async def transfer(self):
        """A transfer by a caller that says who it is by nothing: its status and error."""
        context = ssl.create_default_context(cafile=self.ca)
        reader, writer = await asyncio.open_connection("api.nomba.com", 443, ssl=context)
        body = transfer_body()
        head = "POST /v2/transfers/bank HTTP/1.1\r\nHost: localhost\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        reply = await read_reply(reader)
        writer.close()
        proxy = reply.json.get("proxy", {})
        return [reply.status, proxy.get("error"), reply.outcome]

    def lines(self, event):
        every = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in every if line["event"] == event]

    def loops(self):
        """Statuses of requests that had been through the proxy before."""
        every = self.lines("exchange")
        return {line["status"] for line in every if line.get("error") == "loop_detected"}

    def sent(self):
        paths = (ISSUE, BALANCE, "/v2/transfers/bank")
        return {path: self.simulator.count(path) for path in paths}


@asynccontextmanager
async def house(folder):
    folder = Path(folder)
    code, _, err = await run("certs", "--dir", str(folder / "certs"))
    assert code == 0, err
    ca = trustme.CA(key_type=trustme.KeyType.ECDSA)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("api.nomba.com", key_type=trustme.KeyType.ECDSA).configure_cert(context)
    async with Simulator(Switches(rate_limit=0, recipient_limit=0)) as simulator:
        port = int(simulator.origin.rpartition(":")[2])

        async def pass_on(reader, writer):
            upward = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(_copy(reader, upward[1]), _copy(upward[0], writer))

        await asyncio.start_server(pass_on, "127.0.0.2", 443, ssl=context)
        dns = await Dns.started({"api.nomba.com A": ["127.0.0.2"]})
        yield House(folder, simulator, dns, ca.cert_pem.bytes().decode())


async def _copy(reader, writer):
    try:
        while part := await reader.read(65536):
            writer.write(part)
            await writer.drain()
    except OSError:
        pass
    writer.close()


# -- the apps ------------------------------------------------------------------------------


async def apps_called(folder, apps):
    async with house(folder) as here:
        async with here.proxy():
            played = await asyncio.gather(*(here.app(name) for name in apps))
            without = await here.app("urllib_threads.py", trusting=False)
        return {  # the log is whole once the proxy has ended
            "played": dict(zip(apps, played, strict=True)),
            "without": without,
            "sent": here.sent(),
            "asked": sorted(set(here.dns.asked)),
            "ignored": here.lines("hosts_entry_ignored"),
            "callers": sorted({line["caller"] for line in here.lines("exchange")}),
        }


async def test_apps_with_a_hard_coded_host_reach_the_upstream_and_log_in_by_themselves(tmp_path):
    lacking = {app: why for app in RUN if (why := missing(app))}
    apps = [app for app in RUN if app not in lacking]
    got = await alone(apps_called, hosts=HOSTS, folder=str(tmp_path), apps=apps)
    for app in apps:
        played = got["played"][app]
        assert played["code"] == 0, f"{app}: {played['err']}"
        assert len(played["statuses"]) > CALLS  # each has logged in
        assert set(played["statuses"]) == {200}
    assert got["sent"][BALANCE] == CALLS * len(apps)
    assert got["sent"][ISSUE] == 1  # the proxy's own
    assert got["callers"] == ["owner"]
    assert got["asked"] == ["api.nomba.com A", "api.nomba.com AAAA"]
    (ignored,) = got["ignored"]
    assert (ignored["host"], ignored["addresses"]) == ("api.nomba.com", "127.0.0.1")
    assert got["without"]["code"] != 0
    assert "CERTIFICATE_VERIFY_FAILED" in got["without"]["err"]
    if lacking:
        pytest.skip(f"the others have passed, but {', '.join(lacking.values())}")


async def sandbox_called(folder):
    async with house(folder) as here:
        async with here.proxy(NOMBA_PROXY_UPSTREAM_HOSTS="api.nomba.com"):
            right = await here.app("urllib_threads.py")
            wrong = await here.app("urllib_threads.py", url="https://sandbox.nomba.com")
        errors = {line.get("error") for line in here.lines("exchange")} - {None}
        return {"right": right, "wrong": wrong, "errors": sorted(errors), "sent": here.sent()}


async def test_the_name_of_the_sandbox_does_not_lead_to_production_where_hosts_says_so(tmp_path):
    hosts = f"{HOSTS} sandbox.nomba.com"
    got = await alone(sandbox_called, hosts=hosts, folder=str(tmp_path))
    assert got["right"]["code"] == 0, got["right"]["err"]
    assert got["wrong"]["code"] != 0
    assert "404" in got["wrong"]["err"]
    assert got["errors"] == ["mount_unknown"]
    assert got["sent"][BALANCE] == CALLS


# -- what would happen otherwise -------------------------------------------------------------

ANYBODY = {"NOMBA_PROXY_CALLERS_ANONYMOUS": "true", "NOMBA_PROXY_POOL_IDLE": "0.001"}


async def led_back(folder, by):
    """Transfer while the proxy finds the upstream, and once it is led to itself."""
    told = []
    async with house(folder) as here:
        addresses = {"NOMBA_PROXY_UPSTREAM_ADDRESSES": "127.0.0.1"} if by == "addresses" else {}
        async with here.proxy(trusts_itself=True, **ANYBODY, **addresses):
            if addresses:  # its first login can be too early to meet anybody
                await until(here.loops)
            told.append(await here.transfer())
            here.dns.table = {"api.nomba.com A": ["127.0.0.1"]}
            told.append(await here.transfer())
        return {"told": told, "loops": sorted(here.loops()), "sent": here.sent()}


async def test_dns_that_leads_to_the_proxy_is_a_loop_that_is_answered(tmp_path):
    got = await alone(led_back, hosts=HOSTS, folder=str(tmp_path), by="dns")
    first, second = got["told"]
    assert first[0] == 200
    assert second[:2] == [508, "loop_detected"]
    assert got["loops"] == [508]
    assert got["sent"]["/v2/transfers/bank"] == 1


async def test_an_address_that_is_the_proxys_own_gives_no_token_and_sends_nothing(tmp_path):
    """Its own login goes round as well, so that is where the loop is found."""
    got = await alone(led_back, hosts=HOSTS, folder=str(tmp_path), by="addresses")
    assert got["told"] == [[503, "token_unavailable", "not_sent"]] * 2
    assert got["loops"] == [508]
    assert set(got["sent"].values()) == {0}
