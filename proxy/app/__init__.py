"""The composition root: the only place where things are constructed and wired.

It is asked for by parts, so that only what runs is loaded: `start.py` (one process),
`workers.py` (several), `simulated.py` (the simulator).
"""
