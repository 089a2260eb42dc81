"""The words of the specifications, as values: no I/O."""
