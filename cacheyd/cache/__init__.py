"""Answers requests: by hit, flight, revalidation, bypass or refusal."""
