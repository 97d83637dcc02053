"""Go the way to an upstream, a step at a time: with the dialler that requests go by."""

import asyncio
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass, field

from aiohappyeyeballs import AddrInfoType

from proxy.core.heads import field_value
from proxy.core.lifetime import parse_http_date
from proxy.doctor.certificate import Certificate, read_certificate
from proxy.doctor.of_network import (
    WayOut,
    family,
    of_addresses,
    of_clock,
    of_connection,
    of_no_addresses,
    of_no_connection,
    of_no_tls,
    of_tls,
)
from proxy.doctor.of_replies import Place, of_open_door, read_answer
from proxy.doctor.step import Step, Tell, bad, left_out
from proxy.errors import UpstreamError
from proxy.settings import ReadyUpstream, Settings
from proxy.upstream.connection import Connection
from proxy.upstream.dialler import Dialler
from proxy.upstream.way import Way, certificate_shown, reach_proxy

READ = b"/v1/accounts/balance"  # a read without parameters, of what every account has
_STEPS = ("dns", "tcp", "tls", "http", "clock")


@dataclass(slots=True)
class Walk:
    """What is known of the way to one upstream, as it is gone.

    Attributes:
        one: the upstream.
        settings: that it is of.
        dialler: its.
        ignored: addresses that are not followed, as they are this machine's.
        family: that it was reached over; "" before, or where a proxy dials.
        open: whether the upstream answers, and not with a refusal of this machine.
    """

    one: ReadyUpstream
    settings: Settings
    dialler: Dialler
    ignored: list[str] = field(default_factory=list)
    family: str = ""
    open: bool = False

    @property
    def place(self) -> Place:
        """Where is asked."""
        origin = self.one.origin
        return Place(origin.text, origin.environment, self.one.account_id, self.family)

    @property
    def _way(self) -> Way:
        options = self.one.options
        return Way(options.ca_file, options.addresses, options.ipv4_only, self.one.connect_proxy)

    @property
    def _out(self) -> WayOut:
        options, proxy = self.one.options, self.one.connect_proxy
        return WayOut(
            self.one.origin,
            fixed=bool(options.addresses),
            ipv4_only=options.ipv4_only,
            proxy=f"{proxy[0]}:{proxy[1]}" if proxy else "",
        )

    async def go(self, tell: Tell) -> None:
        """From DNS to an answer; after the first step that fails the others are left out."""
        done, failed = set[str](), ""

        def told(step: Step) -> None:
            nonlocal failed
            done.add(step.name)
            failed = failed or (step.name if step.ok is False else "")
            tell(step)

        found: list[AddrInfoType] = []
        for part in (self._dns, self._tcp, self._tls, self._http):
            await part(found, told)
            if failed:
                break
        for name in _STEPS:
            if name not in done:
                tell(left_out(name, f"{failed} comes first"))

    async def _dns(self, found: list[AddrInfoType], tell: Tell) -> None:
        out = self._out
        if out.proxy:
            tell(left_out("dns", f"the proxy {out.proxy} looks {out.origin.host} up"))
            return
        try:
            async with asyncio.timeout(2 * self.settings.model.timeouts.connect):
                found += await self.dialler.find()
        except (OSError, UnicodeError, UpstreamError) as error:  # TimeoutError is an OSError
            tell(of_no_addresses(out, error))
        else:
            tell(of_addresses(out, [str(one[4][0]) for one in found], ignored=self.ignored))

    async def _tcp(self, found: list[AddrInfoType], tell: Tell) -> None:
        out, began = self._out, time.monotonic()
        address = ""
        try:
            async with asyncio.timeout(self.settings.model.timeouts.connect):
                if out.proxy:
                    await reach_proxy(self._way)
                else:
                    with await self.dialler.reach(found) as sock:
                        address = str(sock.getpeername()[0])
                        self.family = family(address)
        except OSError as error:
            tell(of_no_connection(out, error))
        else:
            tell(of_connection(out, address=address, took=time.monotonic() - began))

    async def _tls(self, found: list[AddrInfoType], tell: Tell) -> None:
        out = self._out
        if not out.origin.tls:
            tell(left_out("tls", f"{out.origin.text} is plain http, to this machine"))
            return
        try:
            made = await self._greeted(found)
        except OSError as error:
            refused = isinstance(error, ssl.SSLCertVerificationError)
            shown = await self._shown(found) if refused else None
            tell(of_no_tls(out, error, shown=shown, now=time.time()))
            return
        try:
            tls = made.tls
            data = tls.getpeercert(binary_form=True) if tls is not None else None
            version = (tls.version() if tls is not None else None) or "TLS"
        finally:
            made.close()
        tell(
            of_tls(
                out,
                version=version,
                shown=read_certificate(data) if data else None,
                now=time.time(),
            )
        )

    async def _greeted(self, found: list[AddrInfoType]) -> Connection:
        timeouts = self.settings.model.timeouts
        async with asyncio.timeout(timeouts.connect + timeouts.tls):
            sock = None if self._way.proxy else await self.dialler.reach(found)
            return await self.dialler.greet(sock)

    async def _shown(self, found: list[AddrInfoType]) -> Certificate | None:
        """The certificate that was refused."""
        timeouts = self.settings.model.timeouts
        with suppress(OSError):
            async with asyncio.timeout(timeouts.connect + timeouts.tls):
                sock = None if self._way.proxy else await self.dialler.reach(found)
                data = await certificate_shown(
                    self.one.origin, way=self._way, sock=sock, patience=timeouts.tls
                )
            return read_certificate(data) if data else None
        return None

    async def _http(self, _: list[AddrInfoType], tell: Tell) -> None:
        before = time.time()
        try:
            reply = await self.dialler.call(
                READ,
                method=b"GET",
                headers=(),
                body=b"",
                within=self.settings.model.token.call_timeout,
            )
        except UpstreamError as error:
            tell(
                bad(
                    "http",
                    f"{self.one.origin.text} was asked, and there was no answer in HTTP: {error.description}",
                    "Something else than Nomba's API is there, or something on the way cuts the connection: "
                    "check NOMBA_BASE_URL and what stands between.",
                )
            )
            return
        after = time.time()
        step = of_open_door(read_answer(reply), self.place)
        self.open = step.ok is True
        tell(step)
        told = field_value(reply.headers, b"date")
        date = parse_http_date(told.decode("latin-1")) if told else None
        tell(of_clock(date, before=before, after=after))
