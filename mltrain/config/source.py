"""YAML 1.2 files as plain data that knows where each value was written."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.scalarbool import ScalarBoolean
from ruamel.yaml.scalarfloat import ScalarFloat
from ruamel.yaml.scalarint import ScalarInt
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, ScalarString

from mltrain.config.size import MAX_BYTES, check_size
from mltrain.errors import ConfigError, NotFoundError

Keys = tuple[str | int, ...]

_VARIABLE = re.compile(r"\$(\$\{)|\$\{([^}]*)\}")
_NAME = re.compile(r"[A-Za-z_]\w*")
_SECRET = re.compile(
    r"SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIAL|PRIVATE|(ACCESS|API|ACCOUNT|STORAGE)_?KEY", re.IGNORECASE
)


@dataclass(frozen=True)
class Origin:
    """Where a value was written."""

    place: str  # a file, or what stands for it in messages
    line: int | None = None
    base_dir: Path = Path(".")

    def __str__(self) -> str:
        return self.place if self.line is None else f"{self.place}:{self.line}"


@dataclass(frozen=True)
class Source:
    """A mapping and the origins of its values by their path of keys."""

    data: dict[str, Any]
    origins: dict[Keys, Origin] = field(default_factory=dict)

    def origin(self, keys: Keys) -> Origin | None:
        """Of the value at ``keys``, or of the nearest mapping around it."""
        for length in range(len(keys), -1, -1):
            if keys[:length] in self.origins:
                return self.origins[keys[:length]]
        return None


def read(path: str | Path) -> Source:
    """Reads a file and those that it extends.

    Raises:
        NotFoundError: there is no such file.
        ConfigError: it is not YAML, not a mapping, extends itself, or names an environment variable that is not set.
    """
    return _read(Path(path).expanduser(), ())


def _read(path: Path, extending: tuple[Path, ...]) -> Source:
    resolved = path.resolve()
    if resolved in extending:
        chain = " -> ".join(str(file) for file in (*extending, resolved))
        raise ConfigError(f"{extending[-1]}: extends goes in a circle: {chain}")
    source = _parse_file(path, resolved.parent)
    base = source.data.pop("extends", None)
    if base is None:
        return source
    if not isinstance(base, str):
        raise ConfigError(f"{source.origin(('extends',))}: extends is {base!r}; want the path of one file")
    try:
        below = _read(resolved.parent / Path(base).expanduser(), (*extending, resolved))
    except NotFoundError as error:
        raise ConfigError(f"{source.origin(('extends',))}: extends {base!r}: {error}") from error
    return _merge(below, source)


def _parse_file(path: Path, base_dir: Path) -> Source:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1).decode()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"config file {str(path)!r} does not exist; name one with -c FILE") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {str(path)!r} cannot be read: {error}") from error
    root = parse_yaml(text, str(path))
    if not isinstance(root, CommentedMap):
        found = "empty" if root is None else _called(root)
        raise ConfigError(f"{path}: the file is {found}; want a mapping such as name: …")
    origins: dict[Keys, Origin] = {(): Origin(str(path), 1, base_dir)}
    data = _plain(root, (), Origin(str(path), 1, base_dir), origins)
    return Source(data, origins)


def _called(value: Any) -> str:
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return "text"
    return "a bool" if isinstance(value, bool) else "a number"


def parse_yaml(text: str, place: str) -> Any:
    """One YAML 1.2 document, of a size that a person writes.

    Raises:
        ConfigError: it is none, or too large; the message names the line.
    """
    yaml = YAML(typ="rt", pure=True)
    yaml.preserve_quotes = True
    try:
        check_size(text, place)
        return yaml.load(text)
    except DuplicateKeyError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        key = re.search(r'duplicate key "([^"]*)"', str(error.problem))
        raise ConfigError(f"{place}:{line}: key {key[1] if key else '?'!r} is written twice; keep one") from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else "?"
        raise ConfigError(f"{place}:{line}: not YAML: {error.problem or error.context}") from error
    except YAMLError as error:
        raise ConfigError(f"{place}: not YAML: {error}") from error
    except ValueError as error:
        # Numbers and dates that only look like ones: Python's own refusal, without a line.
        line = next((node.start_mark.line + 1 for node in _unreadable(yaml.compose(text))), "?")
        raise ConfigError(f"{place}:{line}: a value cannot be read: {error}") from error


def _unreadable(node: Any) -> Iterator[Any]:
    """The scalars that Python refuses to take for what they look like."""
    if isinstance(node, ScalarNode):
        try:
            YAML(typ="rt", pure=True).load(node.value if node.style is None else "")
        except ValueError:
            yield node
        return
    for child in node.value:
        yield from (one for part in (child if isinstance(child, tuple) else (child,)) for one in _unreadable(part))


def _plain(node: Any, keys: Keys, around: Origin, origins: dict[Keys, Origin]) -> Any:
    """The data of a node without ruamel's types, variables replaced; writes the origins below ``keys``."""
    if isinstance(node, CommentedMap):
        mapping = {}
        for key, value in node.items():
            here = _origin(node, key, around)
            if not isinstance(key, str):
                raise ConfigError(f"{here}: key {key!r} is not text; write it in quotes")
            origins[(*keys, str(key))] = here
            mapping[str(key)] = _plain(value, (*keys, str(key)), here, origins)
        return mapping
    if isinstance(node, CommentedSeq):
        items = []
        for index, value in enumerate(node):
            here = _origin(node, index, around)
            origins[(*keys, index)] = here
            items.append(_plain(value, (*keys, index), here, origins))
        return items
    if isinstance(node, str):
        return _substituted(node, around)
    return plain_scalar(node, around)


def _origin(node: CommentedMap | CommentedSeq, key: Any, around: Origin) -> Origin:
    # What came through a merge key (<<) has no line of its own here.
    line = node.lc.data[key][0] + 1 if node.lc.data and key in node.lc.data else around.line
    return Origin(around.place, line, around.base_dir)


def plain_scalar(node: Any, origin: Origin | str) -> Any:
    """A YAML scalar as Python's own type; dates as text."""
    if isinstance(node, TaggedScalar):
        raise ConfigError(f"{origin}: tag {node.tag.value} is not supported; write the plain value")
    if isinstance(node, ScalarBoolean):
        return bool(node)
    if isinstance(node, ScalarInt):
        return int(node)
    if isinstance(node, ScalarFloat):
        return float(node)
    if isinstance(node, ScalarString):
        return str(node)
    if isinstance(node, date):
        return node.isoformat()
    if node is None or isinstance(node, bool | int | float | str):
        return node
    raise ConfigError(f"{origin}: a value of YAML type {type(node).__name__} is not supported")


def plain(node: Any, place: str) -> Any:
    """Data of ``parse_yaml`` without ruamel's types; variables are left alone."""
    if isinstance(node, Mapping):
        return {str(key): plain(value, place) for key, value in node.items()}
    if isinstance(node, list):
        return [plain(value, place) for value in node]
    return plain_scalar(node, place)


def _substituted(text: str, origin: Origin) -> Any:
    """``text`` with ``${NAME}`` replaced; a value that is one unquoted variable has the type of its content."""
    whole = _VARIABLE.fullmatch(text)
    if whole and whole[2] is not None and not isinstance(text, ScalarString):
        value = _variable(whole[2], origin)
        return plain(parse_yaml(value, f"{origin}: ${{{whole[2]}}}"), str(origin)) if value else value
    return _VARIABLE.sub(lambda match: "${" if match[1] else _variable(match[2], origin), str(text))


def _variable(name: str, origin: Origin) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{origin}: ${{{name}}} is not a variable's name; want ${{NAME}}, or $${{ for a plain ${{")
    if _SECRET.search(name):
        raise ConfigError(
            f"{origin}: ${{{name}}} looks like a secret, and a config is stored and printed; storage reads its "
            "credentials from the environment itself: take it out of the config"
        )
    if name not in os.environ:
        raise ConfigError(f"{origin}: environment variable {name} is not set; set it, or write the value")
    return os.environ[name]


def escaped(text: str) -> str:
    """``text`` as it must be written in a file to be read back unchanged."""
    return text.replace("${", "$${")


def _merge(below: Source, above: Source) -> Source:
    """``above`` over ``below``: mappings merge, anything else replaces."""
    origins = dict(below.origins)
    data = _merged(below.data, above.data, (), origins, above.origins)
    origins[()] = above.origins[()]
    return Source(data, origins)


def _merged(
    below: dict[str, Any], above: dict[str, Any], keys: Keys, origins: dict[Keys, Origin], new: dict[Keys, Origin]
) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        here = (*keys, key)
        both = isinstance(value, dict) and isinstance(merged.get(key), dict) and not _whole(here)
        if both:
            origins[here] = new[here]
            merged[key] = _merged(merged[key], value, here, origins, new)
        else:
            for old in [old for old in origins if old[: len(here)] == here]:
                del origins[old]
            origins |= {written: origin for written, origin in new.items() if written[: len(here)] == here}
            merged[key] = value
    return merged


def _whole(keys: Keys) -> bool:
    """Mappings that are one value: half of one and half of another would mean neither."""
    if keys in _WHOLE:
        return True
    return len(keys) == 3 and keys[:2] in (("tune", "space"), ("dataset", "labels"))


_WHOLE: frozenset[Keys] = frozenset(
    {
        ("dataset", "split"),
        ("dataset", "label"),
        ("train", "evaluate", "every"),
        ("train", "checkpoint", "every"),
    }
)


def quoted(text: str) -> str:
    """``text`` as a double-quoted scalar."""
    scalar: str = DoubleQuotedScalarString(text)
    return scalar
