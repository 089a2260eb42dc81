"""Requests to upstream registries: the choice of origin, the login, turns, rate limits, and pauses after failures."""
