"""What pydantic found, told as: key, value found, value wanted, where it is written, nearest valid key."""

import difflib
from collections.abc import Iterable, Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from mltrain.config.source import Keys, Source
from mltrain.config.strict import KeyedValueError
from mltrain.errors import ConfigError

_SHOWN = 5
# Part of the format that this version cannot do: who writes them has not mistyped anything.
_KEYS_TO_COME = frozenset({("tune", "folds"), ("tune", "budget")})
_VALUES_TO_COME = frozenset(
    {
        ("tune", "search", "optuna"),
        ("tune", "scheduler", "name", "pbt"),
        ("loggers", "mlflow"),
    }
)
_TO_COME = "is not supported by this version of mltrain"


def config_error(error: ValidationError, source: Source, model: type[BaseModel]) -> ConfigError:
    """One error for all that is wrong."""
    found: dict[Keys, list[Any]] = {}
    for detail in error.errors(include_url=False):
        if isinstance(detail["input"], dict) and _is_alternative(detail["loc"][-1:], "literal"):
            # Who writes a mapping where a word may stand too has not mistyped the word.
            continue
        cause = detail.get("ctx", {}).get("error")
        below = cause.keys if isinstance(cause, KeyedValueError) else ()
        found.setdefault((*_keys(detail["loc"], source.data), *below), []).append(detail)
    lines = [_line(keys, details, source, model) for keys, details in found.items()]
    more = f"\n… and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return ConfigError("\n".join(lines[:_SHOWN]) + more)


def _keys(loc: tuple[str | int, ...], data: Any) -> Keys:
    """``loc`` without the names that pydantic adds for the members of unions."""
    keys: list[str | int] = []
    for index, part in enumerate(loc):
        is_key = isinstance(data, dict) and part in data
        if is_key or (isinstance(data, list) and isinstance(part, int) and part < len(data)):
            keys.append(part)
            data = data[part]
        elif isinstance(data, dict) and index == len(loc) - 1 and not _is_alternative((part,)):
            keys.append(part)  # what is missing
    return tuple(keys)


def _is_alternative(loc: tuple[str | int, ...], kind: str = "") -> bool:
    """Whether the last of ``loc`` is the name of a union's member, such as ``literal['auto']``, and no key."""
    return any(isinstance(part, str) and part.startswith(kind) and part.endswith("]") for part in loc)


def _line(keys: Keys, details: list[Any], source: Source, model: type[BaseModel]) -> str:
    origin = source.origin(keys)
    where = f"{origin}: " if origin is not None else ""
    detail = details[0]
    key = dotted(keys)
    if keys in _KEYS_TO_COME:
        return f"{where}{key} {_TO_COME} (value {_brief(detail['input'])}); take it out"
    if detail["type"] == "extra_forbidden":
        return f"{where}unknown key {key} (value {_brief(detail['input'])}){_nearest(keys, model)}"
    if detail["type"] == "missing":
        return f"{where}{key} is missing; want {_wanted_type(keys, model)}"
    if detail["type"] == "value_error":
        message = str(detail["ctx"]["error"])
        return f"{where}{key}: {message}" if key else f"{where}{message}"
    wanted = " or ".join(dict.fromkeys(_wanted(one) for one in details))
    if (*(name for name in keys if isinstance(name, str)), str(detail["input"])) in _VALUES_TO_COME:
        return f"{where}{key} {detail['input']} {_TO_COME}; want {wanted}"
    return f"{where}{key} is {_brief(detail['input'])}; want {wanted}"


def dotted(keys: Keys) -> str:
    """Keys as one writes them in an override."""
    text = ""
    for key in keys:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            text += f"{'.' if text else ''}{key}"
    return text


_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text (in quotes, if it looks like a number)",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_attributes_type": "a mapping",
    "finite_number": "a finite number",
    "string_too_short": "some text",
}
# Models that a file may write as something else than a mapping.
_SHORT_FORMS = {
    "CheckpointEvery": "a mapping with steps or seconds",
    "Workers": "a whole number, or a mapping with min and max",
    "Notices": "the name of a source, or a mapping with source and address",
    "Market": "any, spot, on-demand or spot-then-on-demand, or a mapping with workers, wait_s and label",
}
_BOUNDS = {"greater_than": ("gt", "more than"), "greater_than_equal": ("ge", "at least")}
_BOUNDS |= {"less_than": ("lt", "less than"), "less_than_equal": ("le", "at most")}


def _wanted(detail: Any) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"{words} {context[name]}"
    if kind == "literal_error":
        return str(context["expected"]).replace("'", "")
    if kind == "string_pattern_mismatch":
        return _PATTERNS.get(context["pattern"], f"text that matches {context['pattern']}")
    if kind == "too_short":
        return f"at least {context['min_length']} entry"
    if kind == "model_type":
        return _SHORT_FORMS.get(context["class_name"], "a mapping")
    if kind in ("tuple_type", "list_type") and isinstance(detail["input"], str):
        return f"a list: write [{detail['input']}]"
    return _WANTED.get(kind, str(detail["msg"]))


_PATTERNS = {
    r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$": "letters, digits, '.', '_' and '-', a letter or digit first, 100 at most",
    r"^([A-Za-z0-9][A-Za-z0-9._-]*(@[0-9a-f]{64})?|[0-9a-f]{64})$": "a dataset's name, name@digest or digest",
    r"^[^:\s]+:[A-Za-z_]\w*$": "package.module:name or ./file.py:name",
    r"^([A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$": (
        "a label of Ray nodes, as in ray.io/market-type"
    ),
    r"^[A-Za-z0-9][\w.-]*/\w[\w.@/-]*$": "<split>/<name>, as in validation/auc",
}


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _nearest(keys: Keys, model: type[BaseModel]) -> str:
    """Which valid key was probably meant: of the same mapping, else of the whole file."""
    name = str(keys[-1])
    here = fields_at(model, keys[:-1])
    if close := _closest(name, here, 0.6):
        return f"; did you mean {dotted((*keys[:-1], close))}?"
    elsewhere = [path for path in all_keys(model) if path[-1] == name]
    if elsewhere:
        return f"; did you mean {dotted(elsewhere[0])}?"
    everywhere = {path[-1]: path for path in all_keys(model)}
    if close := _closest(name, everywhere, 0.75):
        return f"; did you mean {dotted(everywhere[close])}?"
    return f"; valid here: {', '.join(here)}" if here else ""


def _closest(name: str, names: Iterable[str], cutoff: float) -> str | None:
    """The most similar name; of several the one with the same letters, as letters change places most often."""
    close = difflib.get_close_matches(name, names, 3, cutoff)
    return max(close, key=lambda one: sorted(one) == sorted(name), default=None)


def _wanted_type(keys: Keys, model: type[BaseModel]) -> str:
    name = dotted(keys)
    return {
        "dataset": "dataset: a dataset's name, its URI, or a mapping with table and label",
        "dataset.table": "dataset.table: a Delta table's path or URI",
        "name": "name: …, which names what is made below the root",
    }.get(name, f"{name}: …")


def fields_at(model: type[BaseModel], keys: Keys) -> list[str]:
    """The valid keys of the mapping at ``keys``."""
    models = [model]
    for key in keys:
        models = [inner for outer in models for inner in _below(outer, key)]
    return list(dict.fromkeys(name for one in models for name in one.model_fields))


def _below(model: type[BaseModel], key: str | int) -> list[type[BaseModel]]:
    if key in model.model_fields:
        return _models(model.model_fields[str(key)].annotation)
    # A key that is free text: the mapping of such keys was entered by the step before.
    return [model]


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def all_keys(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of a file, depth first, parents before children."""
    for name, info in model.model_fields.items():
        yield (*above, name)
        for inner in _models(info.annotation):
            yield from all_keys(inner, (*above, name))
