"""What was written last of a flight, in memory for clients that keep up."""

# What was written last stays in memory for clients that keep up, unless they are many: each may hold on to a chunk that
# the others are done with. Chunks below the least size come from the file: each object of its own costs memory (bytes).
RECENT, MAX_RECENT_READERS, LEAST_RECENT = 4 << 20, 8, 16 << 10
