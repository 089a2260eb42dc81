"""The whole cache over any transport: how it is built, started, changed and stopped, and what its requests go through."""
