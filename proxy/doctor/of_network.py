"""What follows from what was met on the way to an upstream: plain functions."""

import errno
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address

from proxy.core.origin import Origin
from proxy.doctor.certificate import Certificate
from proxy.doctor.step import Step, bad, good, left_out
from proxy.errors import ProxyError

_DAY = 86400.0
_SOON = 14 * _DAY
_WORTH_SAYING, _SKEWED = 5.0, 60.0  # seconds
# What OpenSSL says of a certificate (x509_vfy.h).
_EXPIRED, _NOT_YET = 10, 9
_OTHER_NAME = frozenset({62, 64})
_NOBODY_KNOWS = frozenset({2, 18, 19, 20, 21, 27})
_IPV4_ONLY = (
    "Nomba's allowlist takes IPv4 addresses only, and answers calls over IPv6 with 403: "
    "set upstream.ipv4_only = true (NOMBA_PROXY_UPSTREAM_IPV4_ONLY=true)."
)


@dataclass(frozen=True, slots=True)
class WayOut:
    """How an upstream is to be reached.

    Attributes:
        origin: of it.
        fixed: whether its addresses are set.
        ipv4_only: whether IPv6 is left alone.
        proxy: the HTTP proxy on the way, or "".
    """

    origin: Origin
    fixed: bool = False
    ipv4_only: bool = False
    proxy: str = ""

    @property
    def at_nomba(self) -> bool:
        """Whether it is one of Nomba's own two."""
        return self.origin.environment in {"production", "sandbox"}


def family(address: str) -> str:
    """The family of an address, as people call it."""
    return f"IPv{ip_address(address.partition('%')[0]).version}"


# -- DNS ------------------------------------------------------------------------------------


def of_addresses(way: WayOut, found: Sequence[str], *, ignored: Sequence[str]) -> Step:
    """The addresses there are.

    Args:
        way: there.
        found: addresses, in the order of dialling.
        ignored: those that the system has, and that are this machine.
    """
    host = way.origin.host
    every = ", ".join(dict.fromkeys(found))
    if way.fixed:
        return good("dns", f"not asked: upstream.addresses says {every}")
    seen = f"{host} is {every}"
    if host in found:
        return good("dns", f"not asked: {host} is an address")
    if ignored:
        seen += f"; a hosts entry says {', '.join(ignored)}, which is this machine: not followed"
    if all(family(one) == "IPv6" for one in found) and way.at_nomba:
        return bad(
            "dns",
            f"{seen}: IPv6 only",
            "Nomba's allowlist takes IPv4 addresses only. Let the resolver answer for IPv4 too "
            "(AAAA-only answers come from DNS64 or NAT64), or set upstream.addresses.",
        )
    return good("dns", seen)


def of_no_addresses(way: WayOut, error: Exception) -> Step:
    """There are none."""
    host = way.origin.host
    if isinstance(error, ProxyError):  # a hosts entry leads here, and DNS knows nothing else
        return bad(
            "dns", error.description, error.hint.removeprefix("The request may be repeated. ")
        )
    if isinstance(error, UnicodeError):
        return bad("dns", f"{host} is no host name", "Check NOMBA_BASE_URL (upstream.base_url).")
    why = "no answer in time" if isinstance(error, TimeoutError) else _why(error)
    only = " of IPv4 (upstream.ipv4_only)" if way.ipv4_only else ""
    return bad(
        "dns",
        f"{host} has no address{only}: {why}",
        "Ask the resolver by hand (getent hosts "
        f"{host}). In a container look at /etc/resolv.conf and the network policy for port 53; "
        "if the name is wrong, correct NOMBA_BASE_URL or NOMBA_ENVIRONMENT.",
    )


# -- TCP ------------------------------------------------------------------------------------


def of_connection(way: WayOut, *, address: str, took: float) -> Step:
    """A connection there is.

    Args:
        way: there.
        address: that it was made with; of the proxy, if there is one.
        took: seconds.
    """
    ms = f"in {took * 1000:.0f} ms"
    if way.proxy:
        return good("tcp", f"connected to the proxy {way.proxy} {ms}; its address is what counts")
    seen = f"connected to {address} port {way.origin.port} over {family(address)} {ms}"
    over_v6 = way.at_nomba and family(address) == "IPv6"
    return good("tcp", seen, _IPV4_ONLY if over_v6 else "")


def of_no_connection(way: WayOut, error: Exception) -> Step:
    """There is none."""
    where = f"the proxy {way.proxy}" if way.proxy else way.origin.authority
    number = getattr(error, "errno", None)
    text = str(error)
    if isinstance(error, TimeoutError) or number == errno.ETIMEDOUT:
        return bad(
            "tcp",
            f"no connection to {where} in time: nobody answers",
            "A firewall, security group or network policy drops what goes out: allow TCP port "
            f"{way.origin.port} to it, or name the HTTP proxy of your network in "
            "upstream.connect_proxy.",
        )
    if number == errno.ECONNREFUSED or "refused" in text.lower():
        return bad(
            "tcp",
            f"{where} refuses the connection",
            "Nobody listens there: check host and port in NOMBA_BASE_URL and upstream.addresses, "
            "and whether a firewall rejects what goes out.",
        )
    return bad(
        "tcp",
        f"no connection to {where}: {_why(error)}",
        "There is no route: check the network of this machine. Without IPv6 set "
        "upstream.ipv4_only = true.",
    )


# -- TLS ------------------------------------------------------------------------------------


def of_tls(way: WayOut, *, version: str, shown: Certificate | None, now: float) -> Step:
    """TLS is spoken, and the certificate is good.

    Args:
        way: there.
        version: of TLS.
        shown: the certificate.
        now: epoch seconds.
    """
    if shown is None:
        return good("tls", version)
    left = shown.ends - now
    seen = (
        f"{version}, a certificate for {way.origin.host} by {shown.issuer}, "
        f"until {day(shown.ends)} ({left / _DAY:.0f} days)"
    )
    soon = (
        "It ends soon. It is the upstream's to renew; if it is yours, do." if left < _SOON else ""
    )
    return good("tls", seen, soon)


def of_no_tls(way: WayOut, error: Exception, *, shown: Certificate | None, now: float) -> Step:
    """There is no TLS, or the certificate is not good.

    Args:
        way: there.
        error: that ended it.
        shown: the certificate, unverified, if one was shown.
        now: epoch seconds.
    """
    host = way.origin.host
    # asyncio's own word for a handshake that takes too long is ConnectionAbortedError.
    if isinstance(error, TimeoutError | ConnectionAbortedError):
        return bad(
            "tls",
            "no end of the handshake in time",
            "Something swallows it: a server that speaks no TLS, a firewall that looks into it, an MTU "
            f"that is too large. Try openssl s_client -connect {way.origin.host}:{way.origin.port}",
        )
    if not isinstance(error, ssl.SSLCertVerificationError):
        if not isinstance(error, ssl.SSLError):
            return bad("tls", f"the connection ended: {_why(error)}", _closed(way))
        reason = getattr(error, "reason", None) or "handshake failed"
        return bad("tls", f"no TLS with {way.origin.authority}: {reason}", _closed(way))
    whose = f", for {_named(shown)}, by {shown.issuer}" if shown else ""
    code = error.verify_code
    if code in {_EXPIRED, _NOT_YET}:
        when = "has expired" if code == _EXPIRED else "is not valid yet"
        if shown:
            on = f"has expired on {day(shown.ends)}"
            when = on if code == _EXPIRED else f"is not valid before {day(shown.begins)}"
        return bad(
            "tls",
            f"the certificate {when} by this machine's clock, {_moment(now)}{whose}",
            "If that clock is wrong, set it (NTP). Else the certificate has to be renewed by whom it "
            "belongs to.",
        )
    if code in _OTHER_NAME:
        return bad(
            "tls",
            f"the certificate is not for {host}{whose}",
            "Somebody else answers: check the host in NOMBA_BASE_URL, upstream.addresses and the "
            "hosts file.",
        )
    if code in _NOBODY_KNOWS:
        return bad(
            "tls",
            f"nobody this machine trusts vouches for the certificate{whose}",
            "If your network looks into TLS, put the certificate of its CA into a file and name that "
            "in upstream.ca_file. Else install the system's certificates (package ca-certificates). "
            "Do not go on otherwise: it may be somebody who wants your keys.",
        )
    return bad("tls", f"the certificate is refused: {error.verify_message}{whose}", _closed(way))


def _closed(way: WayOut) -> str:
    if way.proxy:
        return f"Let the proxy {way.proxy} pass CONNECT to {way.origin.authority}."
    return (
        "Check that host and port in NOMBA_BASE_URL are those of an https server, and that no "
        "firewall or proxy stands between: upstream.connect_proxy names one that has to be asked."
    )


def _named(shown: Certificate) -> str:
    return ", ".join(shown.names[:4]) or shown.subject


# -- clocks ---------------------------------------------------------------------------------


def of_clock(told: float | None, *, before: float, after: float) -> Step:
    """How far this machine's clock is from the upstream's.

    Args:
        told: by its `Date`, in epoch seconds; None if it has none.
        before: this machine's, when it was asked.
        after: the same, when it had answered.
    """
    if told is None:
        return left_out("clock", "the upstream's reply tells no time")
    # A `Date` has whole seconds, and is cut: it is half a second old on average.
    skew = (before + after) / 2 - (told + 0.5)
    if abs(skew) <= _WORTH_SAYING + (after - before) / 2:
        return good("clock", "this machine's clock and the upstream's agree within seconds")
    side = "ahead of" if skew > 0 else "behind"
    seen = (
        f"this machine's clock ({_moment(after)}) is {abs(skew):.0f} s {side} the upstream's "
        f"({_moment(told)})"
    )
    advice = (
        "Set this machine's clock (NTP: timedatectl, chronyc tracking). The proxy judges the life of "
        "tokens without it, but certificates and webhooks do not."
    )
    return bad("clock", seen, advice) if abs(skew) > _SKEWED else good("clock", seen, advice)


def day(at: float) -> str:
    """A day, of epoch seconds."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
