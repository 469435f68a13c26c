"""A run's events as a person would tell them: what happened, when, and what became of it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Event = Mapping[str, Any]

_NODE = 6


@dataclass
class Chapter:
    """Something that happened, and what followed from it.

    Attributes:
        at_s: seconds since the run's first event.
        parts: clauses of one sentence.
    """

    at_s: float
    parts: list[str]

    @property
    def text(self) -> str:
        """The whole sentence."""
        return "; ".join(self.parts)


@dataclass
class _Loss:
    """Losses that end in the same step done again."""

    chapter: Chapter
    gone: dict[str, str] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)
    left: int = 0
    stalled: str = ""
    again: bool = False


class Story:
    """Told the events of a run one after another, it keeps the chapters.

    Args:
        metric: the objective, named where evaluations are summed up.
    """

    def __init__(self, metric: str = "") -> None:
        self.chapters: list[Chapter] = []
        self._metric = metric
        self._began: float | None = None
        self._at_s = 0.0
        self._attempts = 0
        self._ended = True
        self._nodes: dict[str, str] = {}
        self._members: list[str] = []
        self._least = 1
        self._slow: set[str] = set()
        self._stand_ins: set[str] = set()
        self._gone_before: set[str] = set()
        self._loss: _Loss | None = None
        self._silent: dict[str, _Loss] = {}
        self._routine: dict[str, tuple[int, Event]] = {}
        self._tellers: dict[str, Callable[[Event], str | None]] = {
            "run started": self._started,
            "worker started": self._stands_in,
            "generation formed": self._formed,
            "worker silent": self._fell_silent,
            "worker heard again": self._heard_again,
            "worker lost": self._lost,
            "training again": self._again,
            "too few workers": self._waits,
            "straggler": self._straggles,
            "notice": self._noticed,
            "notice cancelled": self._cancelled,
            "notices unavailable": self._unavailable,
            "drain refused": self._refused,
            "generation stalled": self._stalled,
            "checkpoint": self._routinely,
            "evaluation": self._routinely,
            "checkpoint damaged": self._damaged,
            "checkpoint delayed": self._delayed,
            "run finished": self._over,
            "run stopped": self._over,
            "run failed": self._over,
            "run refused": self._over,
        }

    def tell(self, event: Event) -> str | None:
        """Takes the next event. Returns what there is to say at once, to somebody who looks on."""
        time = float(event["time"])
        self._began = time if self._began is None else self._began
        self._at_s = time - self._began
        if event["event"] in ("worker started", "worker ready") and event.get("node"):
            self._nodes[event["worker"]] = event["node"]
        teller = self._tellers.get(event["event"])
        return None if teller is None else teller(event)

    def close(self) -> None:
        """No event comes any more: what is left to sum up is."""
        self._sum_up()

    def _new(self, text: str) -> Chapter:
        """Opens a chapter, after the routine since the last one."""
        self._sum_up()
        self.chapters.append(Chapter(self._at_s, [text]))
        return self.chapters[-1]

    def _say(self, text: str) -> str:
        self._new(text)
        return text

    # The run

    def _started(self, event: Event) -> None:
        self._attempts += 1
        self._members, self._loss = [], None
        self._silent.clear()
        self._least = event.get("workers_min", 1)
        step = event.get("step", 0)
        if self._attempts == 1 and not step:
            self._new(f"started{_upto(event.get('workers'))}")
        else:
            cause = "" if self._ended else "; the process before it ended without a word"
            self._new(f"attempt {self._attempts} goes on after step {step}{_upto(event.get('workers'))}{cause}")
        self._ended = False

    def _over(self, event: Event) -> None:
        self._ended = True
        what = event["event"].removeprefix("run ")
        after = f" after step {event['step']}" if "step" in event else ""
        why = str(event.get("reason") or event.get("error") or "").partition("\n")[0]
        self._new(f"{what}{after}{f': {why}' if why else ''}")

    # Generations

    def _formed(self, event: Event) -> str | None:
        before, self._members = self._members, list(event["members"])
        number, reason = event["generation"], event.get("reason", "")
        if reason.startswith("saving"):
            return self._say(f"{reason}: {_workers(len(self._members))} make a checkpoint")
        if not before:
            here = self._members == ["local"]
            where = "training in this process" if here else f"training begins with {_workers(len(self._members))}"
            self._new(where)
            return None if here else f"generation {number}: {where}"
        if self._loss is not None and not self._loss.again:
            # Who else comes or goes with it is part of what "training again" says.
            return None
        joined = [worker for worker in self._members if worker not in before]
        left = [worker for worker in before if worker not in self._members and worker not in self._silent]
        back = [worker for worker in joined if worker in self._gone_before]
        new = [worker for worker in joined if worker not in back]
        said = [f"{self._named(new)} joined"] if new else []
        said += [f"{self._named(back)} came back"] if back else []
        slow = [worker for worker in left if worker in self._slow]
        replaced = self._stand_ins if any(worker not in self._stand_ins for worker in joined) else set()
        standing = [worker for worker in left if worker in replaced and worker not in slow]
        announced = [worker for worker in left if worker not in slow and worker not in standing]
        said += [f"{self._named(slow)} made room, being slow"] if slow else []
        said += [f"{self._named(standing)} stood in and made room"] if standing else []
        said += [f"{self._named(announced)} left as announced, no step lost"] if announced else []
        if not said:
            return None
        return self._say(f"{'; '.join(said)}; generation {number} has {_workers(len(self._members))}")

    def _stands_in(self, event: Event) -> str | None:
        if not event.get("stand_in"):
            return None
        worker = event["worker"]
        self._stand_ins.add(worker)
        return self._say(f"spot stays away: {self._named([worker])} ({event['market']}) stands in")

    def _straggles(self, event: Event) -> str:
        self._slow.add(event["worker"])
        busy, others = event["busy"], event["others"]
        return self._say(
            f"{self._named([event['worker']])} is slow: it computes {busy:.0%} of the time, the others {others:.0%}"
        )

    # Notices

    def _noticed(self, event: Event) -> str:
        then = {"drain": "; it is drained", "wait": "; it is drained when that is near"}.get(event["action"], "")
        return self._say(f"{event['source']} gives notice of {_node(event['node'])}: {event['text']}{then}")

    def _cancelled(self, event: Event) -> str:
        then = "; it stays drained: Ray knows no way back" if event["drained"] else ""
        return self._say(f"{event['source']} takes back its notice of {_node(event['node'])}: {event['text']}{then}")

    def _unavailable(self, event: Event) -> str:
        return self._say(f"no notices from {event['source']} on {_node(event['node'])}: {event['reason']}")

    def _refused(self, event: Event) -> str:
        return self._say(f"{_node(event['node'])} should be drained and is not: {event['reason']}")

    def _stalled(self, event: Event) -> str:
        said = f"all workers waited for each other for {event['waiting_s']:.1f} s"
        loss = self._losing()
        loss.stalled = said
        self._tell_loss(loss)
        return f"{said}: looking for who does not reach the others"

    # Losses

    def _fell_silent(self, event: Event) -> str | None:
        worker = event["worker"]
        if worker not in self._members:
            return None
        loss = self._losing()
        self._silent[worker] = loss
        self._gone_before.add(worker)
        loss.silent[worker] = f"no sign of life from {self._named([worker])} for {event['silent_s']:.1f} s"
        return self._without(loss, loss.silent[worker], event)

    def _heard_again(self, event: Event) -> str | None:
        loss = self._silent.pop(event["worker"], None)
        if loss is None:
            return None
        said = f"{event['worker']} was heard again"
        loss.chapter.parts.append(said)
        return said

    def _lost(self, event: Event) -> str | None:
        worker, why = event["worker"], str(event["reason"]).partition("\n")[0]
        if (loss := self._silent.pop(worker, None)) is not None:
            loss.gone[worker] = why
            self._tell_loss(loss)
            return f"{worker} is given up ({why}){self._held(event, loss)}"
        if event.get("generation") is None or worker not in self._members:
            return self._say(f"{self._named([worker])} was lost before it took part ({why})")
        loss = self._losing()
        loss.gone[worker] = why
        return self._without(loss, f"lost {self._named([worker])} ({why})", event)

    def _without(self, loss: _Loss, said: str, event: Event) -> str:
        loss.left = sum(member not in loss.gone and member not in loss.silent for member in self._members)
        self._tell_loss(loss)
        return f"{said}; {self._left(loss.left)}{self._held(event, loss)}"

    def _losing(self) -> _Loss:
        """The loss under way, or a new one."""
        if self._loss is None or self._loss.again:
            self._loss = _Loss(self._new(""))
            self._loss.chapter.parts.append("")
        return self._loss

    def _tell_loss(self, loss: _Loss) -> None:
        """Its first clauses anew: who is lost, and how many go on."""
        lost = " and ".join(f"{self._named([worker])} ({why})" for worker, why in loss.gone.items())
        told = [loss.stalled, *(said for worker, said in loss.silent.items() if worker not in loss.gone)]
        loss.chapter.parts[0] = "; ".join(said for said in (*told, f"lost {lost}" if lost else "") if said)
        loss.chapter.parts[1] = self._left(loss.left) if loss.gone or loss.silent else "the generation is interrupted"

    def _left(self, count: int) -> str:
        if 0 < count < self._least:
            return f"{count} {'is' if count == 1 else 'are'} left of at least {self._least}, and training waits"
        return {0: "nobody is left", 1: "1 goes on"}.get(count, f"{count} go on")

    def _waits(self, event: Event) -> str:
        """More workers are missing than come at once."""
        missing, least, room = event["least"] - event["ready"], event["least"], event["room"]
        where = f" on nodes with {event['nodes']}" if event.get("nodes") else ""
        why = f"; the cluster has room for {_workers(room)} like these only{where}" if room < least else ""
        what = f"waiting for {missing} more worker{'' if missing == 1 else 's'} ({event['ready']} of {least} ready)"
        return self._say(f"{what} for up to {event['left_s']:.0f} s{why}")

    def _held(self, event: Event, loss: _Loss) -> str:
        if not event.get("held_s"):
            return ""
        said = f"its node gets no new worker for {event['held_s']:g} s"
        loss.chapter.parts.append(said)
        return f"; {said}"

    def _again(self, event: Event) -> str:
        steps = event["steps_repeated"]
        repeated = f", {steps} step{'' if steps == 1 else 's'} repeated" if steps else ", no step repeated"
        said = f"training again with {_workers(len(self._members))} after {_short(event['downtime_s'])}{repeated}"
        if self._loss is None:
            return self._say(said)
        self._loss.chapter.parts.append(said)
        self._loss.again = True
        return said

    def _named(self, workers: list[str]) -> str:
        return ", ".join(f"{worker}{self._on(worker)}" for worker in workers)

    def _on(self, worker: str) -> str:
        node = self._nodes.get(worker)
        return "" if node is None else f" on {_node(node)}"

    # What is routine

    def _routinely(self, event: Event) -> None:
        count, _ = self._routine.get(event["event"], (0, event))
        self._routine[event["event"]] = (count + 1, {**event, "at_s": self._at_s})

    def _damaged(self, event: Event) -> None:
        self._new(f"checkpoint step-{event['step']} is damaged and set aside: {event['reason']}")

    def _delayed(self, event: Event) -> str:
        return self._say(
            f"the checkpoint after step {event['waiting_for']} is on its way to storage for {event['since_s']:.1f} s: "
            "the next one, which is due, waits for it"
        )

    def _sum_up(self) -> None:
        """Checkpoints and evaluations since the last chapter, as one."""
        routine, self._routine = self._routine, {}
        if not routine:
            return
        parts = []
        for kind, (count, last) in sorted(routine.items(), reverse=True):
            many = f"{count} {kind}s, the last" if count > 1 else kind
            parts.append(f"{many} after step {last['step']}{self._measured(last)}")
        self.chapters.append(Chapter(max(last["at_s"] for _, last in routine.values()), parts))

    def _measured(self, event: Event) -> str:
        value = event.get("metrics", {}).get(self._metric)
        return f" ({self._metric} {value:.4g})" if isinstance(value, float | int) else ""


def story(events: Iterable[Event], metric: str = "") -> list[Chapter]:
    """The chapters of stored events, the oldest attempt's first.

    Args:
        events: as :func:`mltrain.results.read_events` answers, in the order of their times.
        metric: the objective.
    """
    told = Story(metric)
    for event in events:
        told.tell(event)
    told.close()
    return told.chapters


def _node(node: str) -> str:
    return f"node {node[:_NODE]}{'…' if len(node) > _NODE else ''}"


def _workers(count: int) -> str:
    return f"{count} worker{'' if count == 1 else 's'}"


def _upto(workers: object) -> str:
    return f", for up to {_workers(workers)}" if isinstance(workers, int) and workers else ""


def _short(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
