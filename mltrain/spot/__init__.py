"""Preemption notices: who gives them, what follows from them, and the agent that drains a node."""

from mltrain.spot.agent import Agent, DrainError
from mltrain.spot.notice import Kind, Notice, Source, SourceError
from mltrain.spot.policy import LEAD_S, Action, Decision, decide
from mltrain.spot.watch import watch

__all__ = [
    "LEAD_S",
    "Action",
    "Agent",
    "Decision",
    "DrainError",
    "Kind",
    "Notice",
    "Source",
    "SourceError",
    "decide",
    "watch",
]
