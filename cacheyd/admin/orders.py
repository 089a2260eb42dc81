"""The arguments of commands, parsed once."""

# The most layers that may be fetched at once.
MAX_LAYERS = 64
