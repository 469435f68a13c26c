"""How large a config may be: what a person writes, not what takes memory or time without end to read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.events import (
    AliasEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from mltrain.errors import ConfigError

MAX_BYTES = 1 << 20
MAX_DEPTH = 100
MAX_NODES = 100_000


@dataclass
class _Node:
    """A node of the document, and all below it."""

    anchor: str | None = None
    nodes: int = 1
    height: int = 1


def check_size(text: str, place: str) -> None:
    """Refuses a YAML document that would be too large as data, where each alias stands for a copy. Builds none of it.

    Raises:
        ConfigError: it is too long, too deep, or has too many values; the message names the line.
        YAMLError: it is no YAML.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{place}: the file is longer than {MAX_BYTES:,} bytes, the most that a config may have")
    open_nodes: list[_Node] = []
    known: dict[str, _Node] = {}
    for event in YAML(typ="rt", pure=True).parse(text):
        where = f"{place}:{event.start_mark.line + 1}"
        if isinstance(event, SequenceStartEvent | MappingStartEvent):
            open_nodes.append(_Node(event.anchor))
            _check_depth(len(open_nodes), where)
            continue
        if isinstance(event, ScalarEvent):
            node = _Node(event.anchor)
        elif isinstance(event, AliasEvent):
            node = known.get(event.anchor) or _Node()
            if any(outer.anchor == event.anchor for outer in open_nodes):
                raise ConfigError(f"{where}: *{event.anchor} stands inside of what it stands for")
        elif isinstance(event, SequenceEndEvent | MappingEndEvent):
            node = open_nodes.pop()
        else:
            continue
        if not isinstance(event, AliasEvent) and node.anchor is not None:
            known[node.anchor] = node
        _check_depth(len(open_nodes) + node.height, where)
        if open_nodes:
            open_nodes[-1].nodes += node.nodes
            open_nodes[-1].height = max(open_nodes[-1].height, node.height + 1)
            if open_nodes[-1].nodes > MAX_NODES:
                raise ConfigError(f"{where}: more than {MAX_NODES:,} values, the most that a config may have")


def copied(value: Any, depth: int = 1) -> Any:
    """Mappings and lists anew.

    Raises:
        ConfigError: too deep.
    """
    _check_depth(depth, "the mapping")
    if isinstance(value, Mapping):
        return {key: copied(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [copied(inner, depth + 1) for inner in value]
    return value


def _check_depth(depth: int, where: str) -> None:
    if depth > MAX_DEPTH:
        raise ConfigError(f"{where}: nested more than {MAX_DEPTH} deep, the most that a config may be")
