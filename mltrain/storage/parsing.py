"""JSON that comes from storage, and may be anything."""

import json
from typing import Any


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object that some bytes are.

    Raises:
        ValueError: they are something else; what is wrong with them.
    """
    try:
        content: Any = json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    return content
