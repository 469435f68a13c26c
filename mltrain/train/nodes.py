"""What is known against nodes: a ledger of losses, and how long each of them keeps new workers away."""

from dataclasses import dataclass, field

# A node that fell silent gets no worker for so long, twice as long each further time, up to the second figure; a node
# without a loss for the third starts anew.
_FIRST_S, _LONGEST_S, _FORGIVEN_S = 5.0, 300.0, 900.0
# Processes that end one by one are usually their program's fault; so many within the second figure are the node's.
_PROCESSES, _WITHIN_S = 5, 60.0


@dataclass
class _Record:
    strikes: int = 0
    struck: float = float("-inf")
    held_until: float = float("-inf")
    lost: list[float] = field(default_factory=list)


class Ledger:
    """Holds back nodes that lose workers. Pure but for its memory: times are the caller's, in seconds of one clock."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}

    def silent(self, node: str, now: float) -> float:
        """A node fell silent. Returns for how many seconds it is held back."""
        record = self._records.setdefault(node, _Record())
        if now - record.struck > _FORGIVEN_S:
            record.strikes = 0
        hold_s = min(_LONGEST_S, _FIRST_S * 2.0**record.strikes)
        record.strikes += 1
        record.struck = now
        record.held_until = max(record.held_until, now + hold_s)
        return hold_s

    def process_lost(self, node: str, now: float) -> float:
        """A worker's process on a node ended. Returns for how many seconds the node is held back: usually 0."""
        record = self._records.setdefault(node, _Record())
        record.lost = [time for time in record.lost if now - time < _WITHIN_S] + [now]
        if len(record.lost) < _PROCESSES:
            return 0.0
        record.lost = []
        return self.silent(node, now)

    def held(self, now: float) -> frozenset[str]:
        """Nodes that get no worker now."""
        return frozenset(node for node, record in self._records.items() if now < record.held_until)

    def struck(self, node: str) -> bool:
        """Whether a node was ever held back."""
        return node in self._records and self._records[node].strikes > 0
