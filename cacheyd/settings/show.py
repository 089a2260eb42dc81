"""Prints the settings in force."""

import json

from cacheyd.protocol.registries import canonical_registry
from cacheyd.settings import values as parse
from cacheyd.settings.ages import parse_ages
from cacheyd.settings.settings import DEFAULTS, GLOBAL, PER_REGISTRY, Scope, Setting, Settings
from cacheyd.settings.values import Size


def _shown(setting: Setting, value: object) -> str:
    match value:
        case [program, *arguments] if setting.parse is parse.command:
            # The program is not secret, but its arguments can be.
            return "[" + ", ".join([quoted(program), *['"…"' for _ in arguments]]) + "]"
        case _ if setting.secret and value:
            return '"…"'
        case Size():
            return f'"{value.share * 100:g}%"' if value.share else str(value.bytes or '""')
        case tuple() if setting.parse in (parse.ttls, parse_ages):
            return "{ " + ", ".join(f"{quoted(name)} = {ttl:g}" for name, ttl in value) + " }"
        case tuple():
            return "[" + ", ".join(map(quoted, value)) + "]"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"{value:g}" if isinstance(value, float) else str(value)
        case _:
            return quoted("" if value is None else value)


def show(settings: Settings) -> str:
    """The settings in force as TOML, each with its source. Secrets are masked; durations are in seconds."""
    lines = [_line(s, getattr(settings, s.name), settings.origins.get(s.key)) for s in GLOBAL]
    lines += ["", "[defaults]"]
    lines += [_line(s, getattr(settings.defaults, s.name), settings.origins.get(s.key)) for s in DEFAULTS]
    for name, row in settings.registries.items():
        lines += ["", f'[registries."{name}"]']
        for setting in PER_REGISTRY:
            value = settings.upstreams(name) if setting.name == "upstream" else getattr(row, setting.name)
            if setting.scope is Scope.REGISTRY and not value:
                continue
            own = next((w for key, w in settings.origins.items() if _is_own(key, name, setting.name)), None)
            inherited = settings.origins.get(setting.key) if setting.scope is Scope.DEFAULTS else "default"
            lines.append(_line(setting, value, own or inherited))
    return "\n".join(lines)


def _is_own(key: str, registry: str, name: str) -> bool:
    if not key.startswith('registries."') or not key.endswith(f'".{name}'):
        return False
    return canonical_registry(key.removeprefix('registries."').removesuffix(f'".{name}')) == registry


def _line(setting: Setting, value: object, origin: str | None) -> str:
    return f"{setting.name} = {_shown(setting, value)}  # {origin or 'default'}"


def quoted(value: object) -> str:
    """A text as a TOML basic string: TOML knows all escapes of JSON."""
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
