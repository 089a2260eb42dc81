"""The control socket, and the commands that the tools send to a running cache."""
