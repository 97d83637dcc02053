"""Certificates that change while the proxy runs."""

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, Self, cast

from proxy.app.handshakes import Begun, Handshake
from proxy.app.looking import LOOK_EVERY, looking
from proxy.core.exchange import Emit, Event
from proxy.settings import Tls


class Certificates(ssl.SSLContext):
    """What connections begin with: the newest files that could be used.

    A connection asks it once, when it begins, and keeps what it got.
    """

    _emit: Emit
    _crowds: Callable[[int], bool]
    _now: ssl.SSLContext
    _begun: Begun

    @classmethod
    def of(cls, tls: Tls, *, emit: Emit, crowds: Callable[[int], bool], patience: float) -> Self:
        """From the files as they are.

        Args:
            tls: the files.
            emit: takes events.
            crowds: whether one more handshake, beside so many, is one too many.
            patience: seconds that one may take.

        Raises:
            ValueError: they cannot be used.
        """
        made = cls(ssl.PROTOCOL_TLS_SERVER)
        made._crowds = crowds
        made._emit = emit  # `SSLContext` makes itself before there is an `__init__`
        made._begun = Begun(patience)
        made.take(tls.make())
        return made

    def take(self, context: ssl.SSLContext) -> None:
        """From now on this one is used."""
        context.sslobject_class = Handshake
        self._now = context

    def wrap_bio(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **options: Any
    ) -> ssl.SSLObject:
        """asyncio: a connection begins."""
        made = cast("Handshake", self._now.wrap_bio(incoming, outgoing, *args, **options))
        if self._crowds(len(self._begun)):
            made.refused = True
        else:
            made.between(incoming, outgoing, emit=self._emit, begun=self._begun)
        return made

    @property
    def beginning(self) -> bool:
        """Whether there are connections of which the handshake has not ended."""
        return bool(self._begun)


class CertificateFiles:
    """Looks at the files of the certificates, by their content.

    What is new has to be there at two looks in a row: a key may come a moment after its
    certificate. What cannot be used changes nothing, and is told of once.

    Args:
        tls: the files.
        certificates: told.
        emit: takes events.
    """

    def __init__(self, tls: Tls, *, certificates: Certificates, emit: Emit) -> None:
        self._tls = tls
        self._certificates = certificates
        self._emit = emit
        self._asked = asyncio.Event()
        self._taken = self._seen = (tls.required, tls.contents())

    def use(self, tls: Tls) -> None:
        """Other files may be named from now on; they are looked at at once."""
        self._tls = tls
        self.ask()

    def ask(self) -> None:
        """Somebody says that they have changed, and are whole: look at once."""
        self._asked.set()

    async def watch(self) -> None:
        """Look now and then; never ends."""
        await looking(self._look, asked=self._asked, every=LOOK_EVERY)

    async def _look(self, asked: bool) -> None:  # noqa: FBT001 - `looking` says so
        tls = self._tls
        found = (tls.required, await asyncio.to_thread(tls.contents))
        if found != self._taken and (asked or found == self._seen):
            self._taken = found
            await self._load(tls)
        self._seen = found

    async def _load(self, tls: Tls) -> None:
        try:
            context = await asyncio.to_thread(tls.make)
        except ValueError as error:
            self._emit(Event("certificate_not_reloaded", "error", fields={"reason": str(error)}))
        else:
            self._certificates.take(context)
            at = await asyncio.to_thread(tls.expires)
            fields: dict[str, object] = {} if at is None else {"expires_at": at}
            self._emit(Event("certificate_reloaded", fields=fields))
