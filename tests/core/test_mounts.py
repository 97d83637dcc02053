"""Which upstream a request is for, by name and path."""

import pytest

from proxy.core.mounts import Mount, Mounts, called_by
from proxy.core.origin import host_name
from proxy.errors import HeadInvalid, MountUnknown, TargetAmbiguous
from proxy.settings import parse_origin

ORIGIN = parse_origin("https://api.nomba.com")
LIVE, LIVE_DEEP = (Mount(prefix, frozenset({"live.x"})) for prefix in (b"", b"/deep"))
BOTH = Mount(b"/both", frozenset({"live.x", "test.x"}))
ROOT, NOMBA, LONGER = Mount(b""), Mount(b"/nomba"), Mount(b"/nomba/x")
EVERY = Mounts([ROOT, NOMBA, LIVE, LONGER, BOTH, LIVE_DEEP])


@pytest.mark.parametrize(
    ("host", "path", "mount"),
    [
        ("", b"/v1", ROOT),
        ("other.x", b"/v1", ROOT),
        ("other.x", b"/nomba", NOMBA),
        ("other.x", b"/nombax", ROOT),
        ("other.x", b"/nomba/xy", NOMBA),
        ("other.x", b"/nomba/x/y", LONGER),
        ("live.x", b"/v1", LIVE),
        ("live.x", b"/nomba/x", LIVE),
        ("live.x", b"/deep", LIVE_DEEP),
        ("live.x", b"/both/v1", BOTH),
        ("test.x", b"/both/v1", BOTH),
        ("other.x", b"/both/v1", ROOT),
    ],
)
def test_the_longest_mount_of_the_name_wins(host, path, mount):
    assert EVERY.find(path, host=host) is mount


def test_a_name_reaches_no_upstream_but_its_own():
    with pytest.raises(MountUnknown) as caught:
        EVERY.find(b"/v1", host="test.x")
    assert caught.value.hint == "Mounts: /both"


def test_a_name_that_is_nobodys_reaches_none_that_has_names():
    mounts = Mounts([LIVE, BOTH])
    for host in ("", "other.x"):
        with pytest.raises(MountUnknown, match="by the name") as caught:
            mounts.find(b"/both", host=host)
        assert "live.x" not in f"{caught.value} {caught.value.hint}"


def test_a_path_alone_is_enough_where_no_name_chooses():
    assert Mounts([ROOT, NOMBA, BOTH]).find_by_path(b"/nomba/v1") is NOMBA
    assert Mounts([ROOT, NOMBA]).find_by_path(b"/v1") is ROOT
    for path in (b"/both", b"/both/v1"):
        with pytest.raises(MountUnknown, match="by the name in Host"):
            Mounts([ROOT, BOTH]).find_by_path(path)


@pytest.mark.parametrize(
    ("lines", "authority", "name"),
    [
        ([], "", ""),
        (["Host: "], "", ""),
        (["HOST: Live.X:8080"], "", "live.x"),
        (["host: [::0:1]"], "", "::1"),
        (["Host: live.x"], "live.x:443", "live.x"),
        ([], "live.x.:80", "live.x"),
        (["X-Forwarded-Host: live.x", "Forwarded: host=live.x"], "", ""),
    ],
)
def test_the_name_is_read_from_host_or_an_absolute_target(lines, authority, name):
    headers = [tuple(line.encode().split(b": ", 1)) for line in lines]
    assert called_by(headers, authority=authority) == name


@pytest.mark.parametrize(
    ("values", "authority", "error"),
    [
        ([b"live.x", b"live.x"], "", HeadInvalid),
        ([b"live.x", b"test.x"], "live.x", HeadInvalid),
        ([b"live.x, test.x"], "", HeadInvalid),
        ([b"live.x@test.x"], "", HeadInvalid),
        ([b"live.x:80:80"], "", HeadInvalid),
        ([b"live.x:8o"], "", HeadInvalid),
        ([b"live.x/"], "", HeadInvalid),
        ([b"\xe9"], "", HeadInvalid),
        ([b"test.x"], "live.x", TargetAmbiguous),
        ([b"test.x"], "live.x:80", TargetAmbiguous),
    ],
)
def test_what_can_be_read_two_ways_names_nobody(values, authority, error):
    with pytest.raises(error):
        called_by([(b"Host", value) for value in values], authority=authority)


@pytest.mark.parametrize("port", ["", ":", ":0", ":65535"])
@pytest.mark.parametrize(
    ("text", "name"),
    [("A.b", "a.b"), ("a.b.", "a.b"), ("[FE80::0:1]", "fe80::1"), ("1.2.3.4",) * 2],
)
def test_a_host_has_one_spelling(text, port, name):
    assert host_name(text + port) == name


@pytest.mark.parametrize(
    "text",
    ["", ".", "a..", "::1", "[::1", "[1.2.3.4]", "a:b", "a:1:2", "a b", "a,b", "\u212a", "a:٣"],
)
def test_what_is_no_host_has_no_name(text):
    assert host_name(text) == ""


@pytest.mark.parametrize(
    ("location", "seen"),
    [
        (b"https://api.nomba.com/kept/v1?a", b"/kept/v1?a"),
        (b"/kept", b"/kept"),
        (b"/kept?next=/v1", b"/kept?next=/v1"),
        (b"/v1/x?a#b", b"https://api.nomba.com/v1/x?a#b"),
        (b"/keptx", b"https://api.nomba.com/keptx"),
        (b"https://api.nomba.com/v1/x", b"https://api.nomba.com/v1/x"),
        (b"https://api.nomba.com", b"https://api.nomba.com/"),
        (b"https://other.example/kept/x", b"https://other.example/kept/x"),
        (b"//api.nomba.com/kept/x", b"/kept/x"),
        (b"//other.example/kept", b"//other.example/kept"),
        (b"x/y", b"x/y"),
    ],
)
def test_a_location_outside_of_a_kept_mount_leads_to_no_other_upstream(location, seen):
    assert Mount(b"/kept", strip=False).locate(location, origin=ORIGIN) == seen


def test_a_location_is_found_below_a_mount_that_is_stripped():
    assert Mount(b"/nomba").locate(b"https://api.nomba.com/v1", origin=ORIGIN) == b"/nomba/v1"
    assert Mount().locate(b"/v1", origin=ORIGIN) == b"/v1"
