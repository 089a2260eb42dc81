"""Runs the cache in mitmdump: `mitmdump -s addons/registry_cache.py --mode reverse:https://registry-1.docker.io -p 3000`.

mitmweb takes the same options.
"""

from cacheyd.proxy.addon import RegistryCache

addons = [RegistryCache()]
