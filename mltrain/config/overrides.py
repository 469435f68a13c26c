"""Overrides of single values: ``train.optimizer.lr=1e-4``."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mltrain.config.size import copied
from mltrain.config.source import Keys, Origin, Source, parse_yaml, plain
from mltrain.errors import ConfigError

_SEGMENT = re.compile(r'"((?:[^"\\]|\\.)*)"|([^."]+)')


def apply(source: Source, overrides: Mapping[str, Any] | Sequence[str], base_dir: Path) -> Source:
    """The source with every override put in place, in order; each replaces the whole value at its key.

    Raises:
        ConfigError: an override is not ``key=value``, its value is not YAML, or its key leads through a plain value.
    """
    data, origins = _copied(source.data), dict(source.origins)
    for key, value, origin in _parsed(overrides, base_dir):
        keys = _set(data, key, value, origin)
        for old in [old for old in origins if old[: len(keys)] == keys]:
            del origins[old]
        origins[keys] = origin
    return Source(data, origins)


def _copied(value: Any) -> Any:
    return {key: _copied(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def _parsed(overrides: Mapping[str, Any] | Sequence[str], base_dir: Path) -> list[tuple[str, Any, Origin]]:
    if isinstance(overrides, Mapping):
        return [(key, copied(value), Origin(f"override {key}", None, base_dir)) for key, value in overrides.items()]
    if isinstance(overrides, str):
        raise ConfigError(f"overrides {overrides!r}: want a list of 'key=value' or a mapping")
    parsed = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"override {text!r}: want key=value, as in train.optimizer.lr=1e-3")
        place = f"override {text}"
        parsed.append((key.strip(), plain(parse_yaml(value, place), place), Origin(place, None, base_dir)))
    return parsed


def _set(data: dict[str, Any], key: str, value: Any, origin: Origin) -> Keys:
    segments = _segments(key)
    mapping: Any = data
    keys: Keys = ()
    while segments:
        taken = _taken(mapping, keys, segments)
        name = ".".join(segments[:taken])
        segments = segments[taken:]
        if not segments:
            mapping[name] = value
        else:
            below = mapping.get(name)
            if below is not None and not isinstance(below, dict):
                raise ConfigError(
                    f"{origin}: {'.'.join(map(str, (*keys, name)))} is {below!r}, which has no keys; "
                    f"set it as a whole, as in {'.'.join(map(str, (*keys, name)))}={{{'.'.join(segments)}: …}}"
                )
            mapping[name] = below if below is not None else {}
            mapping = mapping[name]
        keys = (*keys, name)
    return keys


def _taken(mapping: dict[str, Any], keys: Keys, segments: list[str]) -> int:
    """How many segments make up the next key: the longest that is there, as keys may hold dots."""
    for count in range(len(segments), 1, -1):
        if ".".join(segments[:count]) in mapping:
            return count
    if keys == ("tune", "space"):
        return len(segments)
    return 1


def _segments(key: str) -> list[str]:
    """The parts between dots; a part in double quotes may hold dots of its own."""
    segments: list[str] = []
    position = 0
    while True:
        match = _SEGMENT.match(key, position)
        if match is None:
            raise ConfigError(f"override key {key!r}: want names joined by dots, or in double quotes")
        segments.append(re.sub(r"\\(.)", r"\1", match[1]) if match[1] is not None else match[2].strip())
        position = match.end()
        if position == len(key):
            return segments
        if key[position] != ".":
            raise ConfigError(f"override key {key!r}: want a dot after {match[0]!r}")
        position += 1
