"""Turns for flights: who waits for one, and which flight makes way for those who wait."""

# A fetch that waits for its turn looks so often whether another one has to make way (seconds): one that nobody waits for,
# or the slowest below this rate (bytes a second), but none in its first seconds.
LOOK_FOR_WAY, WAY_EVERY, SLOW, YOUNG = 1.0, 0.1, 64 << 10, 5.0
