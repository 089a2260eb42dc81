"""The terms of the specifications as values, and the rules for them; no I/O."""
