"""Where sessions are kept: what `store` and `workers` may say."""

import os
from pathlib import Path

import pytest

from proxy.core.secret import SIGNING, STORE, Secret
from proxy.settings import SettingsError, describe, load
from proxy.settings.store import network_file_system

CREDENTIALS = {
    "NOMBA_CLIENT_ID": "client-0123456789",
    "NOMBA_CLIENT_SECRET": "secret-0123456789",
    "NOMBA_ACCOUNT_ID": "account-0123456789",
}


@pytest.fixture
def settings(tmp_path):
    def begin(**environ):
        return load(environ={**CREDENTIALS, "NOMBA_PROXY_STATE_DIR": str(tmp_path), **environ})

    return begin


@pytest.fixture
def problem(settings):
    def begin(**environ):
        with pytest.raises(SettingsError) as caught:
            settings(**environ)
        [only] = caught.value.problems
        return only

    return begin


def test_one_process_keeps_its_session_in_memory(settings):
    loaded = settings()
    assert loaded.store_dir is None
    assert ("store", "memory", "default") in describe(loaded)


def test_several_workers_share_a_file_in_the_state_folder(settings, tmp_path):
    loaded = settings(NOMBA_PROXY_WORKERS="4")
    assert loaded.store_dir == tmp_path / "sessions"
    assert ("store", f"file:{tmp_path}/sessions", "default") in describe(loaded)


@pytest.mark.parametrize("form", ["file:{}", "file://{}"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_folder_can_be_named(settings, tmp_path, form, workers):
    text = form.format(tmp_path / "kept")
    loaded = settings(NOMBA_PROXY_STORE=text, NOMBA_PROXY_WORKERS=workers)
    assert loaded.store_dir == tmp_path / "kept"
    assert not loaded.store_dir.exists()


def test_memory_is_for_one_process(settings, problem):
    assert settings(NOMBA_PROXY_STORE="memory").store_dir is None
    found = problem(NOMBA_PROXY_STORE="memory", NOMBA_PROXY_WORKERS="2")
    assert (found.key, "each other's session" in found.hint) == ("store", True)


@pytest.mark.parametrize(
    "text", ["file:", "file", "memory:x", "sqlite:x", "/var/lib", "mysql://u:pass-word@h:1/0"]
)
def test_anything_else_is_no_store(problem, text):
    found = problem(NOMBA_PROXY_STORE=text)
    assert found.key == "store"
    assert "pass-word" not in str(found)
    assert "file:DIR" in found.hint


@pytest.mark.parametrize("workers", ["1", "4"])
def test_replicas_have_to_share_a_signing_key(settings, problem, tmp_path, workers):
    found = problem(NOMBA_PROXY_STORE="valkey://127.0.0.1", NOMBA_PROXY_WORKERS=workers)
    assert found.key == "callers.signing_key"
    assert "NOMBA_PROXY_CALLERS_SIGNING_KEY" in found.hint
    (tmp_path / "key").write_text("k" * 40 + "\n")
    (tmp_path / "key").chmod(0o600)
    loaded = settings(
        NOMBA_PROXY_STORE="valkey://127.0.0.1",
        NOMBA_PROXY_WORKERS=workers,
        NOMBA_PROXY_CALLERS_SIGNING_KEY_FILE=str(tmp_path / "key"),
    )
    assert loaded.signing_key == Secret("k" * 40, origin=SIGNING)
    assert loaded.shared_store is not None


def test_a_key_in_the_state_folder_is_not_shared(problem, tmp_path):
    (tmp_path / "signing.key").write_text("k" * 40)
    assert problem(NOMBA_PROXY_STORE="valkey://127.0.0.1").key == "callers.signing_key"


@pytest.mark.parametrize("workers", ["0", "-1", "65", "two", "1.5", ""])
def test_a_number_of_workers_is_a_number(problem, workers):
    assert problem(NOMBA_PROXY_WORKERS=workers).key == "workers"


def test_a_folder_that_others_can_write_to_is_refused(problem, tmp_path):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    assert "other users" in problem(NOMBA_PROXY_STORE=f"file:{folder}").text


@pytest.mark.parametrize("text", ["file:sessions", "file:~/sessions", "file://var/lib", "file:./x"])
def test_a_folder_is_named_by_an_absolute_path(problem, text):
    found = problem(NOMBA_PROXY_STORE=text)
    assert "absolute" in found.text
    assert "same folder" in found.hint


def test_a_folder_of_another_user_is_refused(problem, tmp_path):
    folder = Path("/usr")  # root's
    if os.geteuid() == 0:
        folder = tmp_path / "theirs"
        folder.mkdir()
        os.chown(folder, 65534, 65534)
    assert "another user" in problem(NOMBA_PROXY_STORE=f"file:{folder}").text


def test_a_file_in_the_place_of_the_folder_is_refused(problem, tmp_path):
    (tmp_path / "file").write_text("")
    assert "no folder" in problem(NOMBA_PROXY_STORE=f"file:{tmp_path}/file/below").text


MOUNTS = """\
22 1 8:1 / / rw,relatime - ext4 /dev/root rw
30 22 0:25 / /tmp rw - tmpfs tmpfs rw
40 22 0:40 / /mnt/share rw,relatime shared:1 - nfs4 server:/export rw
41 22 0:41 / /mnt/my\\040disk rw - cifs //server/disk rw
42 40 8:2 / /mnt/share/local rw - xfs /dev/sdb1 rw
43 22 0:43 / /home rw - ext4 /dev/sdc1 rw
44 22 0:44 / /home rw - fuse.sshfs other:/home rw
broken line
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/x", ""),
        ("/tmp/x", ""),
        ("/mnt/share", "nfs4"),
        ("/mnt/share/a/b", "nfs4"),
        ("/mnt/share2", ""),
        ("/mnt/share/local/x", ""),
        ("/mnt/my disk/x", "cifs"),
        ("/home/me", "fuse.sshfs"),
    ],
)
def test_a_network_file_system_is_known_by_where_it_is_mounted(tmp_path, path, kind):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert network_file_system(Path(path), mounts=mounts) == kind


def test_a_link_is_followed_to_where_it_leads(tmp_path):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 1 8:1 / / rw - ext4 x rw\n2 1 0:1 / {tmp_path}/far rw - nfs x rw\n")
    (tmp_path / "near").symlink_to(tmp_path / "far")
    assert network_file_system(tmp_path / "near" / "x", mounts=mounts) == "nfs"


def test_where_nothing_lists_the_mounts_nothing_is_said(tmp_path):
    assert network_file_system(tmp_path, mounts=tmp_path / "none") == ""


# -- a server ------------------------------------------------------------------------------------


@pytest.fixture
def shared(settings):
    """The server that `store` names."""

    def begin(text, **environ):
        key = {"NOMBA_PROXY_CALLERS_SIGNING_KEY": "k" * 40}
        return settings(NOMBA_PROXY_STORE=text, **{**key, **environ}).shared_store

    return begin


@pytest.fixture
def wrong(problem):
    """The one thing that is wrong with a store on a server."""

    def begin(text, **environ):
        key = {"NOMBA_PROXY_CALLERS_SIGNING_KEY": "k" * 40}
        return problem(NOMBA_PROXY_STORE=text, **{**key, **environ})

    return begin


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("valkey://h", "valkey://h:6379"),
        ("redis://h:1", "valkey://h:1"),
        ("rediss://h", "valkeys://h:6379"),
        ("valkeys://me@h:1/3", "valkeys://me@h:1/3"),
        ("valkey://[::1]:1", "valkey://[::1]:1"),
        ("valkey://me:%40secret@h/", "valkey://me@h:6379"),
        ("valkey://VALKEY_1", "valkey://valkey_1:6379"),
    ],
)
def test_a_server_can_be_named(shared, text, shown):
    assert str(shared(text)) == shown


@pytest.mark.parametrize(
    "text",
    [
        *("valkey:", "valkey:h", "valkey://", "valkey://h:0", "valkey://h:65536", "valkey://h:x"),
        *("valkey://h/x", "valkey://h?db=1", "valkey://a b", "valkey://[1.2.3.4]", "valkey://[::1"),
        *("valkey://u:p@pass-word:w/rd@h:1", "valkey:u:pass-word@h", "valkey:/u:pass-word@h"),
        *(
            "valkey://u:pass-word/tail@h",
            "valkeys://u:pass-word@",
            "valkey://u:pass-word@h:x",
            "valkey://h,other",
        ),
    ],
)
def test_what_is_no_address_of_a_server_is_refused_without_its_password(wrong, text):
    found = wrong(text)
    assert found.key == "store"
    assert "pass-word" not in str(found)


def test_the_password_of_a_server_is_a_secret_of_its_own(shared, settings, tmp_path):
    file = tmp_path / "password"
    file.write_text("from-a-file\n")
    file.chmod(0o600)
    for environ in (
        {"NOMBA_PROXY_STORE_PASSWORD_FILE": str(file)},
        {"NOMBA_PROXY_STORE_PASSWORD": "from-a-file"},
        {"CREDENTIALS_DIRECTORY": str(tmp_path)},
    ):
        if "CREDENTIALS_DIRECTORY" in environ:
            file.rename(tmp_path / "NOMBA_PROXY_STORE_PASSWORD")
        found = shared("valkey://h", **environ)
        assert found.password.reveal(to=STORE) == "from-a-file"
        assert "from-a-file" not in repr(found)
    assert shared("valkey://:in%2Fit@h").password.reveal(to=STORE) == "in/it"
    assert shared("valkey://h").password is None


def test_a_password_does_not_stand_in_a_file_or_a_flag(tmp_path):
    environ = {
        **CREDENTIALS,
        "NOMBA_PROXY_STATE_DIR": str(tmp_path),
        "NOMBA_PROXY_CALLERS_SIGNING_KEY": "k" * 40,
    }
    for given in ("flags", "file"):
        text = "valkey://u:pass-word@h"
        (tmp_path / "x.toml").write_text(f'store = "{text}"')
        sources = (
            {"flags": {"store": text}} if given == "flags" else {"config": tmp_path / "x.toml"}
        )
        with pytest.raises(SettingsError) as caught:
            load(environ=environ, **sources)
        assert "store_password_file" in str(caught.value)
        assert "pass-word" not in str(caught.value)


def test_a_password_that_is_changed_in_its_file_is_read_again(shared, tmp_path):
    file = tmp_path / "password"
    file.write_text("one")
    file.chmod(0o600)
    found = shared("valkey://h", NOMBA_PROXY_STORE_PASSWORD_FILE=str(file))
    file.write_text("another")
    assert found.read_password().reveal(to=STORE) == "another"
    file.unlink()
    assert found.read_password().reveal(to=STORE) == "one"


def test_what_else_is_wrong_is_told_beside_a_wrong_address(settings):
    with pytest.raises(SettingsError) as caught:
        settings(
            NOMBA_PROXY_STORE="valkey://",
            NOMBA_PROXY_TOKEN_LEASE="99",
            NOMBA_PROXY_STORE_CA_FILE="/not/there",
        )
    keys = {one.key for one in caught.value.problems}
    assert keys == {"store", "token.lease", "store_ca_file", "callers.signing_key"}


def test_two_passwords_that_differ_are_a_problem(wrong):
    found = wrong("valkey://:one@h", NOMBA_PROXY_STORE_PASSWORD="another")
    assert found.key == "store"
    assert "another password" in found.text


def test_what_is_for_a_server_is_of_no_use_without_one(problem, wrong, tmp_path):
    assert problem(NOMBA_PROXY_STORE_CA_FILE="/x").key == "store_ca_file"
    (tmp_path / "no.pem").write_text("none")
    text = str(tmp_path / "no.pem")
    assert "no certificates" in wrong("valkeys://h", NOMBA_PROXY_STORE_CA_FILE=text).text


@pytest.mark.parametrize(
    "environ",
    [
        {"NOMBA_PROXY_TOKEN_LEASE": "10"},
        {"NOMBA_PROXY_TOKEN_CALL_TIMEOUT": "2"},
        {"NOMBA_PROXY_TOKEN_WAIT_LIMIT": "9"},
    ],
)
def test_a_lease_is_shorter_than_a_call_and_that_than_the_wait(wrong, environ):
    assert wrong("valkey://h", **environ).key == "token.lease"


def test_the_simulator_is_not_shared(tmp_path):
    environ = {"NOMBA_PROXY_STATE_DIR": str(tmp_path), "NOMBA_PROXY_STORE": "valkey://h"}
    environ["NOMBA_PROXY_CALLERS_SIGNING_KEY"] = "k" * 40
    with pytest.raises(SettingsError, match="nomba-proxy simulate"):
        load(environ=environ, flags={"simulate": "true"})


def test_check_shows_the_server_and_hides_its_password(settings):
    loaded = settings(
        NOMBA_PROXY_STORE="valkey://u:pass-word@h", NOMBA_PROXY_CALLERS_SIGNING_KEY="k" * 40
    )
    rows = {key: value for key, value, _ in describe(loaded)}
    assert (rows["store"], rows["store_password"]) == ("valkey://u@h:6379", "***")
    assert "pass-word" not in str(rows)


# -- the next client secret ------------------------------------------------------------------------


def test_a_next_secret_may_be_missing_or_empty_so_far(settings, tmp_path):
    file = tmp_path / "next"
    for _ in range(2):
        [one] = settings(NOMBA_CLIENT_SECRET_NEXT_FILE=str(file)).upstreams
        assert one.next_secret is None
        file.write_text("")
    file.write_text("the-next\n")
    [one] = settings(NOMBA_CLIENT_SECRET_NEXT_FILE=str(file)).upstreams
    assert one.next_secret.reveal(to=one.origin.text) == "the-next"
    file.write_text("another-one\n")
    assert one.read_secrets()[1].reveal(to=one.origin.text) == "another-one"


def test_what_is_in_no_file_does_not_change(settings):
    [one] = settings(NOMBA_CLIENT_SECRET_NEXT="the-next").upstreams
    assert one.next_secret
    assert one.read_secrets is None


def test_a_next_secret_that_is_the_present_one_is_none(settings):
    [one] = settings(NOMBA_CLIENT_SECRET_NEXT=CREDENTIALS["NOMBA_CLIENT_SECRET"]).upstreams
    assert one.next_secret is None
