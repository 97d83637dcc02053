"""Decisions, pure: no await, no clock, no socket, no environment."""
