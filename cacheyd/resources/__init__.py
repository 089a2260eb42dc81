"""Bounds on what peers cost: memory, turns, processor time, open files."""
