"""A run's events as sentences. Events are as a run on three hosts recorded them, less what no sentence is about."""

from typing import Any

from mltrain.results.band import CHECKPOINT, DRAIN, LOSS, STALL, Mark, Span, band
from mltrain.results.story import Story, story

A, B, C, D = (f"worker-1-{number}" for number in range(1, 5))
NODES = {A: "e39a316d56b7", B: "45ea3c659d9c", C: "3771c2a166d8", D: "e39a316d56b7"}

Event = dict[str, Any]


def event(time: float, kind: str, **fields: Any) -> Event:
    return {"time": 1000.0 + time, "event": kind, "attempt": 1, **fields}


def formed(time: float, number: int, *members: str) -> Event:
    reason = f"{len(members)} workers are ready"
    return event(time, "generation formed", generation=number, members=list(members), reason=reason)


def begins(time: float, number: int, step: int) -> Event:
    return event(time, "training", generation=number, step=step)


def lost(time: float, worker: str, why: str, generation: int | None, held_s: float = 0.0) -> Event:
    return event(
        time, "worker lost", worker=worker, node=NODES[worker], reason=why, generation=generation, held_s=held_s
    )


def again(time: float, step: int, downtime_s: float, repeated: int) -> Event:
    return event(time, "training again", step=step, downtime_s=downtime_s, steps_repeated=repeated)


BEGINNING = [
    event(0, "run started", step=0, workers=3),
    *(event(1, "worker started", worker=worker, node=NODES[worker]) for worker in (A, B, C)),
    formed(14.1, 1, A, B, C),
    begins(14.3, 1, 0),
]
KILLED = [
    lost(42.2, A, "its connection ended", 1),
    # The first that forms ends before it does a step.
    formed(42.3, 2, B, C),
    formed(42.3, 3, B, C),
    begins(42.35, 3, 30),
    again(42.36, 31, 0.162, 1),
]
GROWN = [
    event(43, "worker started", worker=D, node=NODES[D]),
    event(50, "checkpoint", step=40),
    event(55, "evaluation", step=100, metrics={"validation/auc": 0.91}),
    event(56, "checkpoint", step=100),
    event(60, "worker ready", worker=D, node=NODES[D]),
    formed(61.0, 4, B, C, D),
    begins(61.1, 4, 120),
]
CUT = [
    event(80, "worker silent", worker=B, silent_s=2.049, held_s=5.0),
    formed(80.1, 5, C, D),
    begins(80.15, 5, 200),
    again(80.2, 201, 0.18, 1),
]


def told(*parts: list[Event]) -> list[tuple[int, str]]:
    return [(int(c.at_s), c.text) for c in story([e for part in parts for e in part], "validation/auc")]


def said(*parts: list[Event]) -> list[str]:
    """What somebody who looks on is told."""
    teller = Story()
    return [line for part in parts for e in part if (line := teller.tell(e)) is not None]


def test_a_loss_is_one_sentence_from_its_cause_to_the_next_step() -> None:
    assert told(BEGINNING, KILLED) == [
        (0, "started, for up to 3 workers"),
        (14, "training begins with 3 workers"),
        (
            42,
            "lost worker-1-1 on node e39a31… (its connection ended); 2 go on; "
            "training again with 2 workers after 0.16 s, 1 step repeated",
        ),
    ]


def test_who_looks_on_is_told_as_it_happens() -> None:
    assert said(BEGINNING, KILLED, GROWN) == [
        "generation 1: training begins with 3 workers",
        "lost worker-1-1 on node e39a31… (its connection ended); 2 go on",
        "training again with 2 workers after 0.16 s, 1 step repeated",
        "worker-1-4 on node e39a31… joined; generation 4 has 3 workers",
    ]


def test_a_checkpoint_that_waits_for_a_slow_store_is_told() -> None:
    delayed = event(100, "checkpoint delayed", waiting_for=40, since_s=12.3)
    said = "the checkpoint after step 40 is on its way to storage for 12.3 s: the next one, which is due, waits for it"
    assert told(BEGINNING, [delayed])[-1] == (100, said)


def test_checkpoints_and_evaluations_are_counted_between_what_happened() -> None:
    summed = (56, "evaluation after step 100 (validation/auc 0.91); 2 checkpoints, the last after step 100")
    assert told(BEGINNING, KILLED, GROWN)[3:] == [
        summed,
        (61, "worker-1-4 on node e39a31… joined; generation 4 has 3 workers"),
    ]
    many = [event(100 + n, "checkpoint", step=n) for n in range(5000)]
    assert told(BEGINNING, many)[2:] == [(5099, "5000 checkpoints, the last after step 4999")]


def test_a_silent_worker_that_is_heard_again_is_not_called_lost() -> None:
    back = [event(81, "worker heard again", worker=B), formed(86, 6, B, C, D)]
    silent, came = told(BEGINNING, KILLED, GROWN, CUT, back)[-2:]
    assert silent[1] == (
        "no sign of life from worker-1-2 on node 45ea3c… for 2.0 s; 2 go on; its node gets no new worker for 5 s; "
        "training again with 2 workers after 0.18 s, 1 step repeated; worker-1-2 was heard again"
    )
    assert came[1] == "worker-1-2 on node 45ea3c… came back; generation 6 has 3 workers"


def test_a_silent_worker_that_is_given_up_is_one_loss() -> None:
    events = [*CUT, lost(82, B, "silent for 4.0 s", 4)]
    assert told(BEGINNING, KILLED, GROWN, events)[-1] == (
        80,
        "lost worker-1-2 on node 45ea3c… (silent for 4.0 s); 2 go on; its node gets no new worker for 5 s; "
        "training again with 2 workers after 0.18 s, 1 step repeated",
    )
    assert said(BEGINNING, KILLED, GROWN, events)[-1] == "worker-1-2 is given up (silent for 4.0 s)"


def test_losses_before_the_next_step_are_told_together() -> None:
    both = [lost(42.2, A, "its connection ended", 1), lost(42.25, B, "its connection ended", 1)]
    ((_, text),) = told(BEGINNING, both, KILLED[-1:])[2:]
    assert text.startswith(
        "lost worker-1-1 on node e39a31… (its connection ended) and worker-1-2 on node 45ea3c… (its connection ended); "
        "1 goes on; training again"
    )


def test_a_stall_ends_with_who_was_cut_off() -> None:
    stall = [
        event(30, "generation stalled", generation=1, waiting_s=4.1),
        lost(31.2, C, "its peers do not reach it", 1, held_s=5.0),
        again(31.4, 21, 1.4, 1),
    ]
    assert told(BEGINNING, stall)[-1][1] == (
        "all workers waited for each other for 4.1 s; lost worker-1-3 on node 3771c2… (its peers do not reach it); "
        "2 go on; its node gets no new worker for 5 s; training again with 3 workers after 1.40 s, 1 step repeated"
    )


def test_an_announced_loss_costs_no_step_and_a_straggler_makes_room() -> None:
    drained = [event(30, "worker released", worker=C), formed(30.1, 2, A, B)]
    assert told(BEGINNING, drained)[-1][1] == (
        "worker-1-3 on node 3771c2… left as announced, no step lost; generation 2 has 2 workers"
    )
    replaced = [
        event(30, "straggler", worker=C, node=NODES[C], busy=0.93, others=0.12),
        event(50, "worker started", worker=D, node=NODES[D]),
        formed(60, 2, A, B, D),
    ]
    assert [text for _, text in told(BEGINNING, replaced)[-2:]] == [
        "worker-1-3 on node 3771c2… is slow: it computes 93% of the time, the others 12%",
        "worker-1-4 on node e39a31… joined; worker-1-3 on node 3771c2… made room, being slow; "
        "generation 2 has 3 workers",
    ]


def test_a_stand_in_is_told_of_when_it_comes_and_when_it_is_replaced() -> None:
    stands_in = [
        event(40, "worker started", worker=C, node=NODES[C], market="on-demand", stand_in=True),
        formed(50, 2, A, B, C),
    ]
    begun = [event(0, "run started", step=0, workers=3), formed(14.1, 1, A, B)]
    replaced = [
        event(70, "worker started", worker=D, node=NODES[D], market="spot", stand_in=False),
        formed(80, 3, A, B, D),
    ]
    texts = [text for _, text in told(begun, stands_in, replaced)][2:]
    assert texts == [
        "spot stays away: worker-1-3 on node 3771c2… (on-demand) stands in",
        "worker-1-3 on node 3771c2… joined; generation 2 has 3 workers",
        "worker-1-4 on node e39a31… joined; worker-1-3 on node 3771c2… stood in and made room; "
        "generation 3 has 3 workers",
    ]
    # Its own node was taken: that is another reason to leave.
    left = [event(70, "worker released", worker=C), formed(70.1, 3, A, B)]
    assert told(begun, stands_in, left)[-1][1].startswith("worker-1-3 on node 3771c2… left as announced")


def test_a_notice_is_told_with_what_follows_from_it() -> None:
    def said(kind: str, **fields: Any) -> str:
        return told(BEGINNING, [event(30, kind, node=NODES[C], source="aws", **fields)])[-1][1]

    text = "terminate at 2026-11-23T12:02:00Z"
    assert said("notice", text=text, action="drain") == f"aws gives notice of node 3771c2…: {text}; it is drained"
    assert said("notice", text=text, action="wait").endswith("; it is drained when that is near")
    assert said("notice", text=text, action="stay").endswith(text)
    cancelled = f"aws takes back its notice of node 3771c2…: {text}"
    assert said("notice cancelled", text=text, drained=False) == cancelled
    assert said("notice cancelled", text=text, drained=True) == f"{cancelled}; it stays drained: Ray knows no way back"
    assert said("notices unavailable", reason="HTTP 503") == "no notices from aws on node 3771c2…: HTTP 503"
    assert said("drain refused", reason="no") == "node 3771c2… should be drained and is not: no"


def test_below_the_least_number_of_workers_nobody_goes_on() -> None:
    begun = [event(0, "run started", step=0, workers=3, workers_min=3), *BEGINNING[1:]]
    waits = event(48, "too few workers", ready=2, least=3, room=2, left_s=594.9)
    first, second = said(begun, [lost(42, A, "its connection ended", 1), waits])[1:]
    assert first.endswith("(its connection ended); 2 are left of at least 3, and training waits")
    assert second == (
        "waiting for 1 more worker (2 of 3 ready) for up to 595 s; the cluster has room for 2 workers like these only"
    )
    some = said([{**waits, "room": 0, "nodes": "ray.io/market-type=spot"}])[-1]
    assert some.endswith("has room for 0 workers like these only on nodes with ray.io/market-type=spot")
    assert said([{**waits, "room": 8}]) == ["waiting for 1 more worker (2 of 3 ready) for up to 595 s"]


def test_a_process_that_ended_without_a_word_is_named_by_the_next_attempt() -> None:
    resumed = [
        event(600, "run started", step=100, workers=3),
        formed(615, 1, A, B, C),
        event(700, "run stopped", step=150, reason="SIGTERM"),
        event(800, "run started", step=150, workers=3),
        event(900, "run failed", error="a mistake\nand more"),
    ]
    assert [text for _, text in told(BEGINNING, resumed)[2:]] == [
        "attempt 2 goes on after step 100, for up to 3 workers; the process before it ended without a word",
        "training begins with 3 workers",
        "stopped after step 150: SIGTERM",
        "attempt 3 goes on after step 150, for up to 3 workers",
        "failed: a mistake",
    ]


def test_the_band_has_the_workers_of_every_step_and_what_changed_them() -> None:
    drained = [event(90, "worker released", worker=C), formed(90.1, 6, D), begins(90.2, 6, 260)]
    made = band([*BEGINNING, *KILLED, *GROWN, *CUT, lost(82, B, "silent", 4), *drained], 300)
    assert made.spans == [Span(0, 30, 3), Span(30, 120, 2), Span(120, 200, 3), Span(200, 260, 2), Span(260, 300, 1)]
    assert made.marks == [
        Mark(30, LOSS), Mark(40, CHECKPOINT), Mark(100, CHECKPOINT), Mark(200, LOSS), Mark(260, DRAIN),
    ]  # fmt: skip


def test_steps_that_were_done_again_belong_to_who_did_them_last() -> None:
    rewound = [
        event(30, "generation stalled", generation=1, waiting_s=4.1),
        *(lost(31, worker, "its connection ended", 1) for worker in (A, B, C)),
        formed(60, 2, D),
        begins(60, 2, 40),
    ]
    again_later = [formed(70, 3, A, B), begins(70, 3, 20)]
    assert band([*BEGINNING, *rewound, *again_later], 90).spans == [Span(0, 20, 3), Span(20, 90, 2)]
    marks = band([*BEGINNING, *rewound], 90).marks
    assert [mark.kind for mark in marks] == [STALL, LOSS, LOSS, LOSS]
    assert {mark.step for mark in marks} == {40}


def test_a_run_in_one_process_has_no_band() -> None:
    events = [event(0, "run started", step=0, workers=0), formed(0, 1, "local"), event(5, "checkpoint", step=10)]
    assert band(events, 20).spans == []
    assert told(events)[1] == (0, "training in this process")
