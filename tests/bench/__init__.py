"""cacheyd side by side with docker-registry's proxy cache and nginx: `python -m tests.bench`."""
