"""What the tools ask of a running cache."""
