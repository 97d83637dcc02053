"""Nomba's single session: the wire calls, and the manager that keeps a token alive."""
