"""The command line at the terminal: what people type, and what they read."""
