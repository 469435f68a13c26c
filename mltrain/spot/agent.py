"""One agent per node: it listens to the node's sources, and drains the node when the policy says so.

It is a few threads of one of the training's workers on the node. Workers of all runs try to be the one; who is not
takes over when that one ends.
"""

import logging
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mltrain.errors import MltrainError
from mltrain.spot.notice import Notice, Source, SourceError
from mltrain.spot.policy import Action, decide

_LOG = logging.getLogger(__name__)

# Who is not the node's agent tries to become it so often.
_TURN_S = 5.0
# A source that fails is asked again after its own pause, twice as long each further time, up to this.
_LONGEST_S = 300.0
# One question may go wrong.
_SAID_AT = 2
_DRAIN_AGAIN_S = 2.0

Tell = Callable[[str, dict[str, Any]], None]


class DrainError(MltrainError):
    """Ray did not take the request to drain the node."""


@dataclass(frozen=True)
class _Heard:
    """What a source says now, or why it does not."""

    source: int
    notices: tuple[Notice, ...]
    error: SourceError | None = None


class Agent:
    """Listens until it is closed or its process ends.

    Args:
        sources: to listen to, each in a thread of its own: one that waits holds up no other.
        drain: drains the node, for a reason and with a deadline (seconds since 1970, None: unknown). A `DrainError` is
            tried again.
        tell: told the kind and the fields of everything that happens, from the agent's threads.
        key: of all agents with one key on a machine, one is active.
    """

    def __init__(
        self, sources: Sequence[Source], drain: Callable[[str, float | None], None], tell: Tell, key: str
    ) -> None:
        self._sources = sources
        self._drain = drain
        self._tell = tell
        self._key = key
        self._closed = threading.Event()
        self._inbox: queue.SimpleQueue[_Heard | None] = queue.SimpleQueue()
        self._standing: dict[int, tuple[Notice, ...]] = {}
        self._drained = self._refused = False
        self._thread = threading.Thread(target=self._run, name="notices", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening. A source that waits for its answer is left to it; nothing comes of that."""
        self._closed.set()
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        with socket.socket(socket.AF_UNIX) as turn:
            while not _taken(turn, self._key):
                if self._closed.wait(_TURN_S):
                    return
            for number in range(len(self._sources)):
                threading.Thread(target=self._listen, args=(number,), name="notices", daemon=True).start()
            again_s: float | None = None
            while not self._closed.is_set():
                try:
                    heard = self._inbox.get(timeout=_LONGEST_S if again_s is None else min(again_s, _LONGEST_S))
                except queue.Empty:
                    heard = None
                if heard is not None:
                    self._take(heard)
                again_s = self._act()

    def _listen(self, number: int) -> None:
        """Asks one source again and again."""
        source, failures, said = self._sources[number], 0, False
        while not self._closed.is_set():
            try:
                self._inbox.put(_Heard(number, source.standing()))
                failures = 0
            except SourceError as error:
                failures += 1
                _LOG.info("notices: %s", error)
                if failures == _SAID_AT and not said:
                    said = True
                    self._inbox.put(_Heard(number, (), error))
            self._closed.wait(min(_LONGEST_S, source.every_s * 2**failures))

    def _take(self, heard: _Heard) -> None:
        name = self._sources[heard.source].name
        if heard.error is not None:
            self._tell("notices unavailable", {"source": name, "reason": str(heard.error)})
            return
        before = self._standing.get(heard.source, ())
        self._standing[heard.source] = heard.notices
        for notice in heard.notices:
            if notice not in before:
                self._tell("notice", {**_fields(notice), "action": decide([notice], time.time()).action.value})
        stands = {notice.id for notice in heard.notices}
        for notice in before:
            if notice.id not in stands:
                self._tell("notice cancelled", {**_fields(notice), "drained": self._drained})

    def _act(self) -> float | None:
        """Does what the policy says. Returns after how many seconds it may say something else, if nothing is heard."""
        decision = decide((notice for notices in self._standing.values() for notice in notices), time.time())
        if decision.action is not Action.DRAIN or self._drained:
            return decision.again_s
        assert decision.reason is not None
        try:
            self._drain(f"{decision.reason.source}: {decision.reason.text}", decision.deadline)
        except DrainError as error:
            _LOG.info("%s", error)
            if not self._refused:
                self._refused = True
                self._tell("drain refused", {"source": decision.reason.source, "reason": str(error)})
            return _DRAIN_AGAIN_S
        self._drained = True
        self._tell("node drained", _fields(decision.reason))
        return None


def _fields(notice: Notice) -> dict[str, Any]:
    return {"source": notice.source, "kind": notice.kind.value, "text": notice.text, "deadline": notice.deadline}


def _taken(turn: socket.socket, key: str) -> bool:
    """Binds a name of the machine that no file stands for, and that the kernel frees when its process ends."""
    try:
        turn.bind(f"\0mltrain-notices-{key}")
    except OSError:
        return False
    return True
