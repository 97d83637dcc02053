"""The composition root: the only place where things are constructed and wired."""

from proxy.app.banner import banner
from proxy.app.inspection import inspector_file
from proxy.app.listeners import CannotStart
from proxy.app.running import Place, Running
from proxy.app.simulated import start_simulator
from proxy.app.start import serve, start
from proxy.app.workers import supervise

__all__ = (
    "CannotStart",
    "Place",
    "Running",
    "banner",
    "inspector_file",
    "serve",
    "start",
    "start_simulator",
    "supervise",
)
