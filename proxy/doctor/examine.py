"""The whole examination, in order: from the settings to the listeners."""

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from proxy.app.sessions import make_dialler
from proxy.core.exchange import Event
from proxy.core.secret import Secret, mask
from proxy.doctor.certificate import read_certificate
from proxy.doctor.local import look_around
from proxy.doctor.network import Walk
from proxy.doctor.of_local import Around, of_doors, of_listener_certificate
from proxy.doctor.of_proxy import of_proxy, status_of
from proxy.doctor.of_replies import Place
from proxy.doctor.of_settings import of_account, of_secret, of_secret_problems, of_settings
from proxy.doctor.reading import Flags, look_at_secret, only, read
from proxy.doctor.session import ask_nomba
from proxy.doctor.step import Step, Tell, bad, left_out
from proxy.doctor.through import ask_proxy
from proxy.settings import ReadyUpstream, Settings

_ALL = (
    "secret",
    "proxy",
    "dns",
    "tcp",
    "tls",
    "http",
    "clock",
    "issue",
    "read",
    "refresh",
    "store",
)


class Examination:
    """One examination.

    Args:
        environ: the environment.
        config: path of the settings file, or None.
        flags: dotted keys with their values from the command line.
        tell: told of each step as it is done.
        upstream: the only one to be looked at; None for all.
        may_issue: whether a login is allowed where nobody has a session.
    """

    def __init__(
        self,
        *,
        environ: Mapping[str, str],
        config: str | None,
        flags: Flags,
        tell: Tell,
        upstream: str | None = None,
        may_issue: bool = True,
    ) -> None:
        self._environ = environ
        self._reading = read(environ=environ, config=config, flags=flags)
        self._tell_as_it_is = tell
        self._upstream = upstream
        self._may_issue = may_issue
        self._secrets: list[Secret] = []
        self._masked: set[str] = set()

    def _tell(self, *steps: Step) -> None:
        """What must not be seen is taken out of all that is told."""
        for step in steps:
            self._tell_as_it_is(step.told(self._veiled))

    def _veiled(self, text: str) -> str:
        for secret in self._secrets:
            text = secret.veil(text, "***")
        for name in self._masked:
            text = text.replace(name, mask(name))
        return text

    async def run(self) -> None:
        """All steps, in order."""
        problems, settings = self._reading.problems, self._reading.settings
        warnings = () if settings is None else settings.warnings
        self._tell(*of_settings(problems, warnings=warnings), *of_secret_problems(problems))
        if settings is not None and self._upstream is not None:
            settings = self._chosen(settings, self._upstream)
        if settings is None:
            for name in (*_ALL, "listener"):
                self._tell(left_out(name, "the settings cannot be used: see above"))
            return
        self._secrets += _own_secrets(settings)
        around = await look_around(settings)
        if settings.simulate:
            await self._simulator(settings, around=around)
        sessions: dict[tuple[str, ...], str] = {}
        for one in settings.upstreams:
            first = sessions.setdefault(one.session, one.name)
            several = len(settings.upstreams) > 1
            examined = _One(
                one,
                settings=settings,
                around=around,
                tell=partial(self._tell_of, f"{one.name}: " if several else ""),
            )
            self._hide(one)
            examined.secret(self._environ, sub_account=self._reading.sub_account)
            await examined.upstream(
                sharing="" if first == one.name else first,
                may_issue=self._may_issue,
                secrets=self._secrets,
            )
        self._tell(*of_doors(around), *_listener_certificate(settings))

    def _tell_of(self, whose: str, step: Step) -> None:
        self._tell(replace(step, name=whose + step.name))

    def _hide(self, one: ReadyUpstream) -> None:
        self._secrets += [one.client_secret, *([one.next_secret] if one.next_secret else ())]
        self._masked |= {name for name in (one.account_id, one.client_id) if len(name) >= 12}

    def _chosen(self, settings: Settings, name: str) -> Settings | None:
        found = only(settings, name)
        if found is None:
            names = ", ".join(one.name for one in settings.upstreams) or "none"
            told = f"there is no upstream {name}; there are: {names}"
            self._tell(bad("upstream", told, "Name one of them with --upstream."))
        return found

    async def _simulator(self, settings: Settings, *, around: Around) -> None:
        """The upstream is in the proxy: there is no way to it, and nothing to lose."""
        for name in ("secret", "dns", "tcp", "tls", "http", "clock"):
            self._tell(left_out(name, "the upstream is the built-in simulator"))
        self._tell(_of_proxy("simulator", around=around))
        if around.status is None:
            return
        entry = settings.model.upstream[0] if settings.model.upstream else None
        await ask_proxy(
            "simulator",
            path=entry.mount.rstrip("/") if entry else "",
            host="",
            settings=settings,
            around=around,
            place=Place("the simulator", "loopback"),
            tell=self._tell,
        )


class _One:
    """The examination of one upstream."""

    def __init__(
        self, one: ReadyUpstream, *, settings: Settings, around: Around, tell: Tell
    ) -> None:
        self._one = one
        self._settings = settings
        self._around = around
        self._tell = tell

    def secret(self, environ: Mapping[str, str], *, sub_account: str) -> None:
        """Look at its credentials."""
        if self._one.client_secret:
            seen = look_at_secret(self._one, settings=self._settings, environ=environ)
            self._tell(of_secret(seen))
        for step in of_account(self._one.account_id, sub_account=sub_account):
            self._tell(step)

    async def upstream(self, *, sharing: str, may_issue: bool, secrets: list[Secret]) -> None:
        """Go the way to it, and ask it."""
        one, around = self._one, self._around
        self._tell(_of_proxy(one.name, around=around))
        walk = _walk(one, settings=self._settings)
        try:
            await walk.go(self._tell)
            if around.runs:
                await ask_proxy(
                    one.name,
                    path=one.mount,
                    host=min(one.hosts, default=""),
                    settings=self._settings,
                    around=around,
                    place=walk.place,
                    tell=self._tell,
                )
            elif sharing or not (one.client_id and one.client_secret and one.account_id):
                why = f"it shares the session of {sharing}" if sharing else "no credentials"
                for name in ("issue", "read", "refresh", "store"):
                    self._tell(left_out(name, f"{why}: see above"))
            else:
                await ask_nomba(walk, may_issue=may_issue, secrets=secrets, tell=self._tell)
        finally:
            walk.dialler.close()


def _of_proxy(name: str, *, around: Around) -> Step:
    """Whether a proxy runs here, and has this upstream."""
    where = around.admin
    if around.status is not None:
        names = [one for status in around.status.values() for one in status["upstreams"]]
        return of_proxy(status_of(around.status, name), names=names, where=where)
    if around.odd:
        return bad(
            "proxy",
            f"one runs here (admin {where}), an older or another version, it seems: what it says of "
            f"its sessions cannot be read (it lacks, or says in another way: {around.odd})",
            "Ask it with the doctor of its own version, or start it again with this one (nomba-proxy "
            "version says which that is). Nothing is done that could end its session.",
        )
    if around.locked:
        return bad(
            "proxy",
            f"one runs here, and its admin listener, {where}, says nothing without a token",
            "Give the doctor what the proxy has: NOMBA_PROXY_ADMIN_TOKEN_FILE (admin.token_file). If "
            "it has none, give it one: a listener that other machines reach answers nothing but "
            "probes without. Nothing is done that could end its session.",
        )
    if around.hangs:
        return bad(
            "proxy",
            f"somebody listens where one would, and does not answer (admin {where})",
            "See below who it is. If it is a proxy, its session may live, so nothing is done that could "
            "end it. Run the doctor as its user; if it hangs, end that process, and ask again.",
        )
    if around.runs:
        return bad(
            "proxy",
            f"one runs here, but none answers on its admin listener, {where}",
            "Name that: --admin-listen ADDR (the proxy's banner says it). Nothing is done that could "
            "end its session.",
        )
    return left_out("proxy", f"none runs here (nobody answers on {where})")


def _own_secrets(settings: Settings) -> list[Secret]:
    """Those of the proxy itself."""
    shared = settings.shared_store
    found = (settings.admin_token, settings.signing_key, shared and shared.password)
    return [one for one in found if one]


def _walk(one: ReadyUpstream, *, settings: Settings) -> Walk:
    ignored: list[str] = []

    def emit(event: Event) -> None:
        if event.name == "hosts_entry_ignored":
            ignored.append(str(event.fields["addresses"]))

    dialler = make_dialler(one, settings=settings, via=b"", emit=emit)
    return Walk(one, settings, dialler, ignored)


def _listener_certificate(settings: Settings) -> list[Step]:
    if settings.tls is None:
        return []
    path = settings.tls.files[0]
    try:
        data = path.read_bytes()
    except OSError:
        data = b""
    shown = read_certificate(data) if data else None
    return [of_listener_certificate(shown, path=str(path), now=time.time())]
