"""`nomba-proxy certs`: what it makes is taken by TLS as it is, and by nobody for another host."""

import asyncio
import contextlib
import fcntl
import json
import os
import re
import ssl
import sys
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from harness import environ, run
from processes import until

from proxy.cli.certs import _MARK, NAMES
from proxy.local_ca import AUTHORITY_LIFE, LEAF_LIFE, Pair, new_authority, new_leaf, read_pair

FILES = {"ca.pem": 0o644, "ca-key.pem": 0o600, "cert.pem": 0o644, "key.pem": 0o600}
NOW = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "certs"


@pytest.fixture
def certs(folder):
    async def begin(*arguments, **env):
        return await run("certs", "--dir", str(folder), *arguments, **env)

    return begin


async def shaken(folder, name, *, trusted=None):
    """Shake hands with a server that has the folder's certificate, as strictly as Python can."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    caller = ssl.create_default_context(cafile=trusted or folder / "ca.pem")
    caller.verify_flags |= ssl.VERIFY_X509_STRICT
    listening = await asyncio.start_server(lambda _, w: w.close(), "127.0.0.1", 0, ssl=server)
    port = listening.sockets[0].getsockname()[1]
    try:
        _, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=caller, server_hostname=name
        )
        writer.close()
        return writer.get_extra_info("peercert")
    finally:
        listening.close()


def authority(folder):
    return read_pair((folder / "ca.pem").read_text(), (folder / "ca-key.pem").read_text())


def kept(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


def put(folder, pair: Pair, *names):
    """Put a pair where the command keeps its own."""
    folder.mkdir(mode=0o700, exist_ok=True)
    for name, text in zip(names, (pair.certificate_pem, pair.key_pem), strict=True):
        (folder / name).write_text(_MARK + text)


# -- what is made ------------------------------------------------------------------------


async def test_every_name_is_verified(certs, folder):
    code, out, err = await certs()
    assert (code, err) == (0, "")
    for name in NAMES:
        found = await shaken(folder, name)
        assert {value for _, value in found["subjectAltName"]} >= {"api.nomba.com"}
        assert name in out
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        await shaken(folder, "api.example.com")
    with pytest.raises(ssl.SSLCertVerificationError, match="self-signed"):
        await shaken(folder, "api.nomba.com", trusted=ssl.get_default_verify_paths().cafile)


async def test_what_is_printed_can_be_followed(certs, folder):
    _, out, _ = await certs()
    printed = dict(re.findall(r"(?m)^ +([A-Z_]+)=(\S+)", out))
    assert printed["NOMBA_PROXY_TLS_CERT_FILE"] == str(folder / "cert.pem")
    assert printed["NOMBA_PROXY_TLS_KEY_FILE"] == str(folder / "key.pem")
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"):
        assert printed[name] == str(folder / "ca.pem")
    assert "\n     127.0.0.1 api.nomba.com\n" in out
    assert authority(folder).fingerprint in out


async def test_the_hosts_entry_names_the_upstream_that_there_is(certs):
    """What is meant for the sandbox would move money if it were led to production."""
    _, out, _ = await certs(NOMBA_ENVIRONMENT="sandbox")
    assert "\n     127.0.0.1 sandbox.nomba.com\n" in out


async def test_scripts_are_told_the_same(certs, folder):
    code, out, _ = await certs("--json")
    said = json.loads(out)
    assert code == 0
    assert said.pop("ca_sha256") == authority(folder).fingerprint
    assert said.pop("ca_expires") > said.pop("expires")
    assert said == {
        "ca_file": str(folder / "ca.pem"),
        "cert_file": str(folder / "cert.pem"),
        "key_file": str(folder / "key.pem"),
        "names": list(NAMES),
        "ca_kept": False,
    }


async def test_keys_are_for_their_owner_and_are_never_printed(certs, folder):
    before = os.umask(0)
    try:
        told = [*(await certs()), *(await certs("--json")), *(await certs("--new-ca"))]
    finally:
        os.umask(before)
    assert {one.name: one.stat().st_mode & 0o777 for one in folder.iterdir()} == FILES
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in ("ca-key.pem", "key.pem"):
        (secret,) = re.findall("-----\n(.+?)\n-", (folder / name).read_text(), re.DOTALL)
        assert not any(line in str(part) for part in told for line in secret.splitlines())


async def test_the_state_folder_is_where_they_go_by_themselves(tmp_path):
    code, out, _ = await run("certs", "--json", NOMBA_PROXY_STATE_DIR=str(tmp_path / "state"))
    assert (code, json.loads(out)["ca_file"]) == (0, str(tmp_path / "state/certs/ca.pem"))


async def test_names_of_ones_own_are_vouched_for_too(certs, folder):
    code, out, _ = await certs(*("--name", "Proxy.Internal."), *("--name", "10.0.0.7"))
    assert (code, "127.0.0.1, ::1, proxy.internal, 10.0.0.7, and nothing else" in out) == (0, True)
    for name in ("proxy.internal", "10.0.0.7", "api.nomba.com"):
        await shaken(folder, name)
    assert (await certs())[0] == 0
    await shaken(folder, "proxy.internal")


@pytest.mark.parametrize("name", ["a b", "*.nomba.com", "api.nomba.com:443", "", "10.0.0.0/8"])
async def test_what_is_no_name_is_refused(certs, folder, name):
    code, _, err = await certs("--name", name)
    assert (code, "neither a host name nor an address" in err) == (2, True)
    assert not folder.exists()


# -- what the CA may vouch for -------------------------------------------------------------


def general(name):
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def forged(ca: Pair, name: x509.GeneralName, *, use: bool = True) -> Pair:
    """What somebody with the key of the CA could make: a certificate for another name.

    `use`: whether it says that it is a server's.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = new_leaf(ca, now=datetime.now(UTC), key=key).certificate
    builder = x509.CertificateBuilder(
        subject_name=x509.Name([]),
        issuer_name=leaf.issuer,
        public_key=key.public_key(),
        serial_number=7,
        not_valid_before=leaf.not_valid_before_utc,
        not_valid_after=leaf.not_valid_after_utc,
    ).add_extension(x509.SubjectAlternativeName([name]), critical=True)
    for one in leaf.extensions:
        left_out = (x509.SubjectAlternativeName, *((x509.ExtendedKeyUsage,) * (not use)))
        if not isinstance(one.value, left_out):
            builder = builder.add_extension(one.value, critical=one.critical)
    return Pair(builder.sign(ca.key, SHA256()), key)


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("api.nomba.com", True),
        ("nomba.com", False),
        ("dashboard.nomba.com", False),
        ("example.com", False),
        ("127.0.0.2", False),
        ("10.0.0.1", False),
        ("::2", False),
    ],
)
async def test_another_host_is_refused_even_if_the_ca_vouches_for_it(certs, folder, name, taken):
    await certs()
    put(folder, forged(authority(folder), general(name)), "cert.pem", "key.pem")
    if taken:
        await shaken(folder, name)
        return
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
        await shaken(folder, name)


async def test_a_caller_is_not_let_in_by_a_certificate_of_the_ca(certs, folder):
    await certs()
    pair = forged(authority(folder), x509.UniformResourceIdentifier("spiffe://a/b"), use=False)
    (folder / "caller.pem").write_text(pair.certificate_pem + pair.key_pem)
    listening = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=folder / "ca.pem")
    listening.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    listening.verify_mode = ssl.CERT_REQUIRED
    calling = ssl.create_default_context(cafile=folder / "ca.pem")
    calling.load_cert_chain(folder / "caller.pem")
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = listening.wrap_bio(up, down, server_side=True)
    caller = calling.wrap_bio(down, up, server_hostname="api.nomba.com")
    with contextlib.suppress(ssl.SSLWantReadError):
        caller.do_handshake()
    with contextlib.suppress(ssl.SSLWantReadError):
        server.do_handshake()
    caller.do_handshake()  # the server is verified
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        server.do_handshake()


# -- run again -----------------------------------------------------------------------------


async def test_the_certificate_is_renewed_and_the_ca_and_the_keys_stay(certs, folder):
    await certs()
    before = kept(folder)
    code, out, _ = await certs()
    after = kept(folder)
    assert (code, "it was there" in out) == (0, True)
    assert {name for name in FILES if before[name] != after[name]} == {"cert.pem"}
    await shaken(folder, "api.nomba.com")


async def test_a_new_ca_is_made_only_if_that_is_said(certs, folder, tmp_path):
    await certs()
    before = kept(folder)
    old = tmp_path / "old.pem"
    old.write_bytes(before["ca.pem"])
    code, out, _ = await certs("--new-ca", "--name", "more.internal")
    after = kept(folder)
    assert (code, "apps have to trust it" in out) == (0, True)
    assert {name for name in FILES if before[name] != after[name]} == set(FILES)
    await shaken(folder, "more.internal")
    with pytest.raises(ssl.SSLCertVerificationError):
        await shaken(folder, "api.nomba.com", trusted=old)


async def test_a_name_that_the_ca_is_not_for_changes_nothing(certs, folder):
    await certs()
    before = kept(folder)
    code, _, err = await certs("--name", "late.internal")
    assert (code, "late.internal" in err, "--new-ca" in err) == (1, True, True)
    assert kept(folder) == before


@pytest.mark.parametrize(
    ("gone", "why"),
    [("ca.pem", "ca.pem is not there"), ("ca-key.pem", "ca-key.pem is not there")],
)
async def test_half_a_ca_is_not_replaced_by_itself(certs, folder, gone, why):
    await certs()
    (folder / gone).unlink()
    code, _, err = await certs()
    assert (code, why in err, "--new-ca" in err) == (1, True, True)
    assert (await certs("--new-ca"))[0] == 0
    await shaken(folder, "api.nomba.com")


async def test_a_ca_that_has_ended_is_told(certs, folder):
    put(folder, new_authority(NAMES, now=NOW - AUTHORITY_LIFE), "ca.pem", "ca-key.pem")
    code, _, err = await certs()
    assert (code, "it ended on 2026-11-01" in err) == (1, True)


async def test_a_key_that_does_not_fit_is_made_anew(certs, folder):
    await certs()
    (folder / "key.pem").write_text(_MARK + "half a fil")
    assert (await certs())[0] == 0
    await shaken(folder, "api.nomba.com")


async def test_one_waits_for_another(folder):
    folder.mkdir(mode=0o700)
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", "certs", "--dir", str(folder)),
        env=environ(),
        stdout=asyncio.subprocess.DEVNULL,
    )
    waits = f"-> FLOCK  ADVISORY  WRITE {process.pid} "
    ended = asyncio.create_task(process.wait())
    await until(lambda: ended.done() or waits in Path("/proc/locks").read_text())
    assert not list(folder.iterdir())
    os.close(descriptor)
    assert await asyncio.wait_for(ended, 30) == 0
    assert {one.name for one in folder.iterdir()} == set(FILES)


# -- whose files these are -------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
async def test_a_folder_that_others_can_write_is_refused(certs, folder, mode):
    folder.mkdir()
    folder.chmod(mode)
    code, out, err = await certs()
    assert (code, out, "chmod go-w" in err) == (1, "", True)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", FILES)
async def test_a_file_of_somebody_else_stays_as_it_is(certs, folder, name):
    folder.mkdir(mode=0o700)
    theirs = folder / name
    theirs.write_text("-----BEGIN CERTIFICATE-----\n")
    for flags in ((), ("--new-ca",)):
        code, out, err = await certs(*flags)
        assert (code, out) == (1, "")
        assert f"{theirs} was not made by" in err
    assert [one.name for one in folder.iterdir()] == [name]
    assert theirs.read_text() == "-----BEGIN CERTIFICATE-----\n"


async def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    code, out, err = await run("certs", "--dir", str(tmp_path / "file" / "certs"))
    assert (code, out, "Traceback" in err, str(tmp_path) in err) == (1, "", False, True)


# -- how long they live ----------------------------------------------------------------------


def test_a_certificate_ends_with_its_ca_at_the_latest():
    made = new_authority(NAMES, now=NOW)
    assert made.ends == NOW + AUTHORITY_LIFE
    assert new_leaf(made, now=NOW).ends == NOW + LEAF_LIFE
    late = NOW + AUTHORITY_LIFE - timedelta(days=30)
    assert new_leaf(made, now=late).ends == made.ends
    life = new_leaf(made, now=NOW).ends - made.certificate.not_valid_before_utc
    assert life < timedelta(days=825)  # what Apple's systems take
