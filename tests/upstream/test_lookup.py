"""Where a hosts entry leads to this machine, and where the upstream is looked for then."""

import asyncio
import socket

import pytest
from alone import OWN_ADDRESS, Dns, alone

from proxy.core.origin import Origin
from proxy.errors import UpstreamTimeout, UpstreamUnreachable
from proxy.upstream.dialler import Dialler, Timeouts
from proxy.upstream.lookup import look_up, servers_file
from proxy.upstream.way import Way

HOST = "upstream.test"
HERE = f"127.0.0.1 {HOST}"
ELSEWHERE = {f"{HOST} A": ["127.0.0.2"]}


async def looked_up(table, *, host=HOST, ipv4_only=False, follow=False):
    """Look a name up, and say where it leads, what was ignored and what DNS was asked."""
    dns = await Dns.started(table)
    ignored = []
    family = socket.AF_INET if ipv4_only else socket.AF_UNSPEC
    try:
        found = await look_up(host, 443, family=family, ignored=None if follow else ignored.extend)
    except UpstreamUnreachable as error:
        told = {"error": error.description, "hint": error.hint, "outcome": error.outcome}
        return {"asked": sorted(dns.asked), **told}
    return {
        "found": [info[4][0] for info in found],
        "ports": sorted({info[4][1] for info in found}),
        "ignored": ignored,
        "asked": sorted(dns.asked),
    }


async def test_a_hosts_entry_that_leads_here_is_ignored_and_dns_is_asked():
    got = await alone(looked_up, hosts=HERE, table=ELSEWHERE)
    assert got == {
        "found": ["127.0.0.2"],
        "ports": [443],
        "ignored": ["127.0.0.1"],
        "asked": [f"{HOST} A", f"{HOST} AAAA"],
    }


async def test_any_address_of_this_machine_is_ignored_and_not_only_those_of_loopback():
    got = await alone(looked_up, hosts=f"{OWN_ADDRESS} {HOST}", table=ELSEWHERE)
    assert (got["found"], got["ignored"]) == (["127.0.0.2"], [OWN_ADDRESS])


async def test_addresses_of_both_kinds_are_taken_and_ipv6_only_where_it_may_be():
    table = {f"{HOST} A": ["192.0.2.1", "192.0.2.2"], f"{HOST} AAAA": ["2001:db8::1"]}
    hosts = f"::1 {HOST}\n{HERE}"
    got = await alone(looked_up, hosts=hosts, table=table)
    assert got["found"] == ["192.0.2.1", "192.0.2.2", "2001:db8::1"]
    assert set(got["ignored"]) == {"::1", "127.0.0.1"}
    got = await alone(looked_up, hosts=hosts, table=table, ipv4_only=True)
    assert got["found"] == ["192.0.2.1", "192.0.2.2"]
    assert got["asked"] == [f"{HOST} A"]


async def test_a_hosts_entry_that_leads_elsewhere_is_followed():
    got = await alone(looked_up, hosts=f"192.0.2.7 {HOST}", table=ELSEWHERE)
    assert (got["found"], got["ignored"], got["asked"]) == (["192.0.2.7"], [], [])


async def test_one_address_of_this_machine_among_others_is_enough():
    got = await alone(looked_up, hosts=f"192.0.2.7 {HOST}\n{HERE}", table=ELSEWHERE)
    assert (got["found"], got["ignored"]) == (["127.0.0.2"], ["127.0.0.1"])


async def test_what_is_meant_to_be_here_is_followed():
    got = await alone(looked_up, hosts=HERE, table=ELSEWHERE, follow=True)
    assert (got["found"], got["asked"]) == (["127.0.0.1"], [])
    got = await alone(looked_up, table=ELSEWHERE, host="127.0.0.1")
    assert (got["found"], got["asked"]) == (["127.0.0.1"], [])


async def test_what_dns_itself_says_is_taken_as_it_is():
    got = await alone(looked_up, hosts=HERE, table={f"{HOST} A": ["127.0.0.1"]})
    assert (got["found"], got["ignored"]) == (["127.0.0.1"], [])


@pytest.mark.parametrize(
    ("table", "why"), [({}, "Domain name not found"), ({f"{HOST} MX": []}, "no data")]
)
async def test_a_name_that_dns_does_not_know_is_unreachable_and_not_sent(table, why):
    got = await alone(looked_up, hosts=HERE, table=table)
    assert HOST in got["error"]
    assert why in got["error"]
    assert "upstream.addresses" in got["hint"]
    assert got["outcome"] == "not_sent"


async def test_a_dns_server_that_is_not_there_is_told_and_nothing_was_sent():
    got = await alone(looked_up, hosts=HERE, nameserver="127.0.0.9", table=ELSEWHERE)
    assert "Could not contact DNS servers" in got["error"]
    assert (got["outcome"], got["asked"]) == ("not_sent", [])


# -- by way of a dialler ----------------------------------------------------------------


async def dialled(table, *, host=HOST, addresses=(), silent=False, dials=1):
    """Dial a name, with a server on each of two addresses that says which it is."""

    def saying(text):
        async def serve(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text))
            writer.close()

        return serve

    for address in ("127.0.0.1", "127.0.0.2"):
        await asyncio.start_server(saying(address.encode()), address, 8090)
    if silent:  # a server that takes questions and says nothing
        dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        dns.bind(("127.0.0.1", 53))
    else:
        await Dns.started(table)
    ignored = []
    kind = "loopback" if host.endswith(".localhost") else "custom"
    dialler = Dialler(
        Origin(f"http://{host}:8090", host, 8090, tls=False, authority=host, environment=kind),
        timeouts=Timeouts(connect=0.5 if silent else 5.0),
        way=Way(addresses=tuple(addresses)),
        ignored=ignored.append,
    )
    told = []
    for _ in range(dials):
        try:
            reply = await dialler.call(b"/", headers=(), body=b"", within=10)
            told.append(reply.body.decode())
        except UpstreamTimeout as error:
            told.append(f"{error.code} {error.outcome}")
    return {"told": told, "ignored": ignored}


async def test_a_dialler_reaches_the_upstream_behind_the_hosts_entry_and_says_so_once():
    got = await alone(dialled, hosts=HERE, table=ELSEWHERE, dials=3)
    assert got == {"told": ["127.0.0.2"] * 3, "ignored": [["127.0.0.1"]]}


async def test_an_address_of_the_settings_is_dialled_even_if_it_is_here():
    got = await alone(dialled, hosts=HERE, table=ELSEWHERE, addresses=["127.0.0.1"])
    assert got == {"told": ["127.0.0.1"], "ignored": []}


async def test_a_name_of_this_machine_is_followed_to_this_machine():
    hosts = "127.0.0.1 nomba.localhost"
    got = await alone(dialled, hosts=hosts, table=ELSEWHERE, host="nomba.localhost")
    assert got == {"told": ["127.0.0.1"], "ignored": []}


async def test_a_dns_server_that_says_nothing_takes_no_longer_than_connecting_may():
    got = await alone(dialled, hosts=HERE, table={}, silent=True)
    assert got["told"] == ["upstream_timeout not_sent"]


# -- systemd-resolved -------------------------------------------------------------------


def test_a_server_that_reads_the_hosts_file_too_is_passed_over(tmp_path):
    (tmp_path / "stub-resolv.conf").write_text("nameserver 127.0.0.53\n")
    (tmp_path / "resolv.conf").write_text("nameserver 192.0.2.53\n")
    link = tmp_path / "etc"
    link.symlink_to(tmp_path / "stub-resolv.conf")
    assert servers_file(link) == str(tmp_path / "resolv.conf")
    assert servers_file(tmp_path / "resolv.conf") is None
    (tmp_path / "resolv.conf").unlink()
    assert servers_file(link) is None
