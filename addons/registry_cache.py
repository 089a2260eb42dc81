"""`mitmdump -s addons/registry_cache.py --mode reverse:https://registry-1.docker.io -p 3000`, and the same with mitmweb."""

from cacheyd.proxy.addon import RegistryCache

addons = [RegistryCache()]
