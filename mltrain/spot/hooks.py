"""Notices from anybody: a file that appears, or a URL that answers.

Both hold the same: nothing, a line of text, or a JSON object with ``deadline_s`` (seconds from when it was written) and
``text``, both optional. Kubernetes is such a file: it says SIGTERM to a container's first process only, and before that
runs the container's ``preStop`` hook, which writes the file and holds SIGTERM back until the training has left
(kubernetes.io, "Container Lifecycle Hooks" and "Termination of Pods").
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

from mltrain.spot.endpoint import Endpoint
from mltrain.spot.notice import Kind, Notice, SourceError

KUBERNETES = "/tmp/mltrain-notice"
_LARGEST_BYTES = 1 << 16
# What is further away is a mistake, and more than clocks can hold.
_FURTHEST_S = 1e9
# An empty file as young as that may be about to be written.
_SETTLED_S = 1.0


class File:
    """A notice stands for as long as the file is there. Its deadline counts from when it was last written."""

    every_s = 1.0

    def __init__(self, path: str, name: str = "file") -> None:
        self.name = name
        self._path = Path(path)

    def standing(self) -> tuple[Notice, ...]:
        try:
            with self._path.open("rb") as file:
                content = file.read(_LARGEST_BYTES).decode("utf-8", "replace").strip()
            written = self._path.stat().st_mtime
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise SourceError(f"{self._path} cannot be read: {error}") from error
        if not content and 0 <= time.time() - written < _SETTLED_S:
            return ()
        return (_parsed(self.name, content, written, str(self._path)),)


class Url:
    """A notice stands for as long as the URL answers 200; 204 and 404 say that there is none.

    Its deadline counts from when it was first seen.
    """

    name = "http"
    every_s = 5.0

    def __init__(self, address: str, now: Callable[[], float] = time.time) -> None:
        self._endpoint = Endpoint(address)
        self._now = now
        self._said = ""
        self._seen: float | None = None

    def standing(self) -> tuple[Notice, ...]:
        answer = self._endpoint.ask("", timeout_s=5.0)
        if answer.status in (204, 404):
            self._seen = None
            return ()
        if answer.status != 200:
            raise self._endpoint.refused("", answer)
        if self._seen is None or answer.text != self._said:
            self._seen, self._said = self._now(), answer.text
        return (_parsed(self.name, answer.text, self._seen, self._endpoint.address),)


def _parsed(source: str, content: str, written: float, place: str) -> Notice:
    text, deadline = content.partition("\n")[0][:200], None
    try:
        given = json.loads(content)
    except (ValueError, RecursionError):
        given = None
    if isinstance(given, dict):
        text = str(given.get("text") or "")
        if (seconds := given.get("deadline_s")) is not None:
            number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
            if not number or not -_FURTHEST_S <= seconds <= _FURTHEST_S:
                raise SourceError(f"{place} has deadline_s {seconds!r}; want a number of seconds")
            deadline = written + seconds
    return Notice(source, place, Kind.LEAVING, text or f"notice in {place}", deadline)
