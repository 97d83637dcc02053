"""A stand-in for the payments API Nomba, for tests and for trying things out.

It speaks HTTP/1.1 on a real socket, keeps what it was sent byte for byte, and
can be told to misbehave. Each belief about Nomba that is not documented is a
switch (`switches.py`).

Here is what it can be told, which settings and help ask for at every start; the stand-in itself
is in `simulator.py`, and only loaded where there is one.
"""

from proxy.simulator.faults import KINDS, Fault, Kind, parse_fault
from proxy.simulator.messages import Received, Reply
from proxy.simulator.switches import Switches, choices

__all__ = (
    "KINDS",
    "Fault",
    "Kind",
    "Received",
    "Reply",
    "Switches",
    "choices",
    "parse_fault",
)
