"""What operators see of a running cache."""
