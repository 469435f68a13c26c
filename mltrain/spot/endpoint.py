"""HTTP as metadata services want it: no proxies, no redirects, short time-outs, small answers."""

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from mltrain.spot.notice import SourceError

_TIMEOUT_S = 2.0
_LARGEST_BYTES = 1 << 18


@dataclass(frozen=True)
class Answer:
    """A status, headers by lower-case name, and a body."""

    status: int
    headers: Mapping[str, str]
    text: str


class Endpoint:
    """Where a service is.

    Args:
        address: ``http://host:port``, or https; a path in it comes before every path that is asked for.
    """

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self.address = address.rstrip("/")
        self._host, self._port, self._path = parts.hostname or "", parts.port, parts.path.rstrip("/")
        self._query = parts.query
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection

    def ask(
        self, path: str, headers: Mapping[str, str] | None = None, *, method: str = "GET", timeout_s: float = _TIMEOUT_S
    ) -> Answer:
        """Asks once, over a connection of its own.

        Raises:
            SourceError: no answer within ``timeout_s``, or none that is HTTP.
        """
        query = f"?{self._query}" if self._query else ""
        connection = self._kind(self._host, self._port, timeout=timeout_s)
        try:
            connection.request(method, f"{self._path}{path}{query}", headers=dict(headers or {}))
            answer = connection.getresponse()
            body = answer.read(_LARGEST_BYTES)
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, body.decode("utf-8", "replace").strip())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise SourceError(f"{self.address}{path} cannot be asked: {type(error).__name__}: {error}") from error
        finally:
            connection.close()

    def refused(self, path: str, answer: Answer) -> SourceError:
        """The error for an answer that is none."""
        said = f": {answer.text[:200]}" if answer.text else ""
        return SourceError(f"{self.address}{path} answered HTTP {answer.status}{said}")

    def object(self, path: str, answer: Answer) -> dict[str, Any]:
        """The JSON object in an answer.

        Raises:
            SourceError: it holds something else.
        """
        try:
            parsed = json.loads(answer.text)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{self.address}{path} answered {answer.text[:200]!r}; want a JSON object") from error
        if not isinstance(parsed, dict):
            raise SourceError(f"{self.address}{path} answered {answer.text[:200]!r}; want a JSON object")
        return parsed
