"""What is said about a node, in one form whoever says it, and how one asks."""

import enum
from dataclasses import dataclass
from typing import Protocol

from mltrain.errors import MltrainError


class Kind(enum.Enum):
    """What is going to happen to the node."""

    LEAVING = "leaving"  # it goes away: terminated, stopped, moved, rebooted
    RISK = "risk"  # it may go away; nobody says when
    PAUSE = "pause"  # it stands still for seconds, and goes on with everything in memory


@dataclass(frozen=True)
class Notice:
    """One thing that a source says of the node that it is asked on.

    Attributes:
        source: who says it: the name of a `Source`.
        id: the same for as long as the source speaks of the same thing; unique in the source.
        kind: what is going to happen.
        text: in the source's own words.
        deadline: when it happens, in seconds since 1970 by the node's clock; None: at any moment, or unknown.
    """

    source: str
    id: str
    kind: Kind
    text: str
    deadline: float | None = None


class SourceError(MltrainError):
    """A source cannot be reached, or does not answer as its protocol says."""


class Source(Protocol):
    """Somebody who gives notice about the node that this process runs on.

    Attributes:
        name: for events.
        every_s: pause between two questions.
    """

    name: str
    every_s: float

    def standing(self) -> tuple[Notice, ...]:
        """Asks what stands now. What was there before and is not any more was cancelled, or is over.

        May wait for a change, for a minute or two at most.

        Raises:
            SourceError: nobody knows.
        """
