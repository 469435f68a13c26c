"""Lines that say how work goes: what happened stays to be read, how far it is gives way to the next line."""

from collections.abc import Callable

Progress = Callable[[str], None]
"""Told how work goes, a line at a time."""


class Passing(str):
    """A line that the next one makes obsolete, such as one of many evaluations. Who shows lines may leave it out."""

    __slots__ = ()
