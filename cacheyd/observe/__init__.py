"""Everything that operators see of a running cache: logs, metrics, the report."""
