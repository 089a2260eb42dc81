"""A simple, transparent, registry-agnostic pull-through cache for containerd."""

__version__ = "0.1.0"
