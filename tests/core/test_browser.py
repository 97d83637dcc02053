"""Which pages get in, and by which names the proxy is called."""

import pytest

from proxy.core.browser import Pages
from proxy.errors import HostRefused, OriginRefused

PAGES = Pages.of(hosts=["Proxy.Internal"], origins=["https://Console.example/", "http://a:3000"])


def check(*lines):
    PAGES.check([tuple(line.encode().split(b": ", 1)) for line in lines])


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "localhost:8080", "LOCALHOST:1", "127.0.0.1", "127.9.9.9:80", "[::1]:8080"),
        *("app.localhost:8080", "host.docker.internal", "api.nomba.com", "sandbox.nomba.com:443"),
        *("proxy.internal:9999", "localhost.", "api.nomba.com.:1"),
    ],
)
def test_its_own_names_are_answered(host):
    check(f"Host: {host}")


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "localhost.evil.example", "xlocalhost", "127.0.0.1.evil.example", ""),
        *("10.0.0.1", "[::2]", "nomba.com", "api.nomba.com.evil.example", "proxy.internal.x"),
        *("evil.example:8080", "localhost@evil.example", "0.0.0.0"),
    ],
)
def test_other_names_are_not(host):
    with pytest.raises(HostRefused):
        check(f"Host: {host}")


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["Host: localhost:8080", "Origin: http://localhost:8080"],
        ["Host: localhost", "Origin: https://console.EXAMPLE", "Sec-Fetch-Site: cross-site"],
        ["Host: localhost", "Origin: http://a:3000"],
        ["Host: localhost", "Sec-Fetch-Site: none"],
        ["Host: localhost", "Sec-Fetch-Site: same-origin"],
    ],
)
def test_programs_and_allowed_pages_pass(lines):
    check(*lines)


@pytest.mark.parametrize(
    "lines",
    [
        ["Origin: http://localhost:3000", "Host: localhost:8080"],
        ["Host: localhost:8080", "Origin: http://localhost:3000"],
        ["Host: localhost", "Origin: null"],
        ["Host: localhost", "Origin: https://evil.example"],
        ["Host: localhost", "Origin: http://a:3001"],
        ["Host: localhost", "Origin: https://console.example.evil.example"],
        ["Host: localhost", "Origin:  "],
        ["Host: localhost", "Origin: https://evil.example", "Origin: http://localhost"],
        ["Host: localhost", "Origin: http://localhost", "Origin: https://evil.example"],
        ["Host: localhost", "Origin: http://a:3000", "Origin: https://evil.example"],
        ["Host: localhost", "Sec-Fetch-Site: cross-site"],
        ["Host: localhost", "sec-fetch-site: Cross-Site"],
    ],
)
def test_foreign_pages_do_not(lines):
    with pytest.raises(OriginRefused):
        check(*lines)
