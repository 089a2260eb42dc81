"""Everything that touches mitmproxy."""
