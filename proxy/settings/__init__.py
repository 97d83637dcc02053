"""Load and validate the settings; report all problems at once.

The only reader of the environment. A value comes from a flag, the environment, the file
or its default, in this order, and keeps its origin.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from proxy.settings.addresses import (
    Address,
    Listener,
    UnixSocket,
    is_loopback,
    parse_address,
    parse_origin,
)
from proxy.settings.effective import (
    Problem,
    ReadyUpstream,
    Settings,
    SettingsError,
    SharedStore,
    Tls,
    describe,
)
from proxy.settings.load import load
from proxy.settings.model import SettingsModel, UpstreamSettings
from proxy.settings.reload import Reloaded, take_over

__all__ = (
    "Address",
    "Listener",
    "Problem",
    "ReadyUpstream",
    "Reloaded",
    "Settings",
    "SettingsError",
    "SettingsModel",
    "SharedStore",
    "Tls",
    "UnixSocket",
    "UpstreamSettings",
    "describe",
    "environment",
    "is_loopback",
    "load",
    "parse_address",
    "parse_origin",
    "share_metrics",
    "take_over",
)


def environment() -> Mapping[str, str]:
    """The process environment; nothing else in the proxy reads it."""
    return os.environ


def share_metrics(folder: Path) -> None:
    """Let processes put their metrics into one folder: the library looks for it there."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
