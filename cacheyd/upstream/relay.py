"""An upstream's answer that is passed on as it is: read into memory, within bounds of bytes and seconds."""

# The most that an error's body may have (bytes).
RELAY_MAX = 64 << 10

# How long the body of an error is waited for (seconds).
RELAY_WAIT = 5.0
