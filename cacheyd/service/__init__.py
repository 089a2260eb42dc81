"""The whole cache over any transport: builds, starts, reloads and stops it, and answers its requests."""
