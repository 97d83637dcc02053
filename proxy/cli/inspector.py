"""Ask a running proxy's inspector: what `tail` and `export` have in common."""

import argparse
import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from proxy.settings import Settings

_FILTERS = ("q", "method", "status", "caller", "family")
_FLAGS = ("money", "errors")


class NoInspector(Exception):
    """It cannot be asked; the text says why and what to do."""


class Gone(Exception):
    """It ended, or is not there: worth another try."""


class Asker:
    """Asks the inspector.

    Args:
        settings: say where it is.
        url: its address with its key, if one was given.
    """

    def __init__(self, settings: Settings, *, url: str | None) -> None:
        self._settings = settings
        self._url = url
        # No proxy from the environment: the inspector is on this machine.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def open(
        self, path: str, query: Mapping[str, str], *, headers: Mapping[str, str], timeout: float
    ) -> IO[bytes]:
        """A reply to be read and closed.

        Raises:
            NoInspector: no address is known, or it does not let us in.
            Gone: nobody answers there.
        """
        base, token = self._address()
        url = f"{base}{path}?{urllib.parse.urlencode(query)}"
        request = urllib.request.Request(  # noqa: S310 - it begins with http://
            url, headers={"Authorization": f"Bearer {token}", **headers}
        )
        try:
            reply: IO[bytes] = self._opener.open(request, timeout=timeout)
        except urllib.error.HTTPError as error:
            with error:
                text = error.read().decode("utf-8", "replace")
            try:
                said = json.loads(text)["error"]
            except (ValueError, KeyError, TypeError):
                said = f"HTTP {error.code}"
            if error.code == 401 and self._url is None:
                raise Gone(said) from None  # another one has taken its place
            raise NoInspector(str(said)) from None
        except OSError as error:
            raise Gone(f"{base} does not answer ({getattr(error, 'reason', error)})") from None
        return reply

    def _address(self) -> tuple[str, str]:
        """Base address and key."""
        text = self._url or self._kept()
        base, _, token = text.partition("/?token=")
        if not base.startswith("http://") or not token:
            raise NoInspector("--url takes the address that the proxy printed, ?token=… included")
        return base, token

    def _kept(self) -> str:
        """The address that the running proxy left for us."""
        folder = self._settings.state_dir
        path = self._settings.inspector_file(self._settings.inspect_listen.port)
        kept = {one: _read_line(one) for one in (path, *sorted(folder.glob("inspector-*.url")))}
        if self._answers(kept[path]):
            return kept[path]
        # It may have taken another port; what a killed one left behind says nothing.
        living = [text for text in kept.values() if self._answers(text)]
        if len(living) == 1:
            return living[0]
        if living:
            ports = [text.partition("/?token=")[0].removeprefix("http://") for text in living]
            choice = " or ".join(f"--inspect-listen {one}" for one in ports)
            raise NoInspector(f"there are several inspectors; choose one: {choice}")
        raise Gone(
            f"no inspector is open ({folder} knows of none that answers).\n"
            "Start the proxy with it: nomba-proxy serve --inspect; or name its address: "
            "--url 'http://127.0.0.1:4040/?token=…'"
        )

    def _answers(self, text: str) -> bool:
        base, _, token = text.partition("/?token=")
        if not base.startswith("http://"):
            return False
        headers = {"Authorization": f"Bearer {token}"}
        request = urllib.request.Request(f"{base}/api/info", headers=headers)  # noqa: S310
        try:
            with self._opener.open(request, timeout=5):
                return True
        except OSError:
            return False


def _read_line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""


def filters(arguments: argparse.Namespace) -> dict[str, str]:
    """The query that the command line asks for."""
    named = {name: getattr(arguments, name) for name in _FILTERS}
    found = {name: value for name, value in named.items() if value}
    return found | {name: "1" for name in _FLAGS if getattr(arguments, name)}


def read(reply: IO[bytes]) -> Any:
    """Its JSON."""
    try:
        with reply:
            return json.load(reply)
    except (OSError, http.client.HTTPException, ValueError):
        raise Gone("the inspector ended in the middle of its answer") from None
