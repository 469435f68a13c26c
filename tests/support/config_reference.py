"""The table of every config key in docs/how-to/config.md, made from the models.

python -m tests.support.config_reference     writes it anew
"""

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, FiniteFloat
from pydantic.fields import FieldInfo

from mltrain.config import DatasetFile, DatasetSpec, Experiment

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "config.md"
_BEGIN, _END = "<!-- generated: begin -->\n", "<!-- generated: end -->\n"


def reference() -> str:
    """Every key with its default and what it means."""
    parts: list[tuple[str, type[BaseModel], str]] = [
        ("A dataset file", DatasetFile, ""),
        ("`dataset` as a mapping", DatasetSpec, "dataset."),
        ("An experiment file", Experiment, ""),
    ]
    return "\n".join(_section(title, model, prefix) for title, model, prefix in parts)


def _section(title: str, model: type[BaseModel], prefix: str) -> str:
    rows = "\n".join(_rows(model, prefix))
    return f"### {title}\n\n| key | default | meaning |\n|---|---|---|\n{rows}\n"


def _rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    said = _documentation(model)
    for name, info in model.model_fields.items():
        inner = _model_of(info.annotation)
        keyed = get_origin(info.annotation) is dict and inner is not None
        yield f"| `{prefix}{name}` | {_default(info)} | {_cell(said[name] + _choices(info.annotation))} |"
        if inner is not None and inner is not DatasetSpec:
            yield from _rows(inner, f"{prefix}{name}.{'*.' if keyed else ''}")


def _documentation(model: type[BaseModel]) -> dict[str, str]:
    """The string under each field, of the class and those that it extends."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(body, ast.ClassDef)
    said: dict[str, str] = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            said[field.target.id] = str(ast.literal_eval(text.value))
    return said


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_of(argument) for argument in get_args(annotation))
    return next((model for model in found if model is not None), None)


def _choices(annotation: Any) -> str:
    """The values of a Literal, where the field is one, alone or among others."""
    options = [annotation, *get_args(annotation)]
    values = [value for option in options if get_origin(option) is Literal for value in get_args(option)]
    if not values:
        return ""
    number = " or a number" if FiniteFloat in options else ""
    return f" ({', '.join(f'`{value}`' for value in values)}{number})"


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "needed"
    if info.description:  # where it takes words
        return info.description
    value = info.get_default()
    if isinstance(value, BaseModel):
        return ""
    if value is None:
        return "none"
    if isinstance(value, dict) and any(isinstance(inner, BaseModel) for inner in value.values()):
        return f"`{{{', '.join(f'{json.dumps(key)}: {{}}' for key in value)}}}`"
    return f"`{json.dumps(value) if not isinstance(value, str) else value}`"


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def written() -> str:
    """The table as the page has it."""
    return PAGE.read_text().partition(_BEGIN)[2].partition(_END)[0]


def write() -> None:
    """Puts the table into the page."""
    before, _, rest = PAGE.read_text().partition(_BEGIN)
    PAGE.write_text(f"{before}{_BEGIN}{reference()}{_END}{rest.partition(_END)[2]}")


if __name__ == "__main__":
    write()
