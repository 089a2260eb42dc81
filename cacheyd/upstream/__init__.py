"""Registries upstream: as whom they are asked, which of them, how often, and when not."""
