"""JSON that comes from storage, and may be anything."""

import json
from typing import Any


def parse(data: bytes) -> Any:
    """The JSON value that some bytes are.

    Raises:
        ValueError: they are something else; what is wrong with them.
    """
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object that some bytes are.

    Raises:
        ValueError: they are something else; what is wrong with them.
    """
    content = parse(data)
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    return content
