"""Who listens, as the kernel says it."""

import os
import socket

import pytest

from proxy.doctor.holders import holders, name_of
from proxy.settings import Address, UnixSocket


@pytest.mark.parametrize("name", ["sock", "a folder/of many  words"])
def test_who_listens_at_a_path_is_found_whatever_its_name(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        assert holders(UnixSocket(str(path))) == set()  # nobody is let in yet
        sock.listen()
        assert holders(UnixSocket(str(path))) == {os.getpid()}
        assert holders(UnixSocket(f"{path}x")) == set()


@pytest.mark.parametrize(
    ("kind", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_who_listens_at_a_port_is_found(kind, host):
    with socket.socket(kind) as sock:
        sock.bind((host, 0))
        sock.listen()
        found = holders(Address(host, sock.getsockname()[1]))
        assert found == {os.getpid()}
        assert name_of(found).endswith(f", process {os.getpid()}")
