"""The code that uses mitmproxy: the addon, and the connections of clients and to upstreams."""
