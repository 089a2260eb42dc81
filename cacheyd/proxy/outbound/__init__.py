"""The connections to upstreams."""
