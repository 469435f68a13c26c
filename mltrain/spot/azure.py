"""Azure's Scheduled Events.

From "Azure Metadata Service: Scheduled Events for Linux VMs": the header ``Metadata: true`` and an ``api-version`` go
with every question; the first one may take two minutes, because it switches the service on. An event names the
machines that it is about, since all of a scale set hear of it; ``NotBefore`` is empty once it has started, and an event
that is cancelled or over is not listed any more. Preempt comes 30 s ahead, Terminate 5-15 minutes, Redeploy 10, Reboot
and Freeze 15.

Events are not acknowledged: that lets Azure go ahead at once, for all machines that the event names, while others on
this machine may count on the time that they were told, and so may a checkpoint that is on its way.
"""

from email.utils import parsedate_to_datetime
from typing import Any

from mltrain.spot.endpoint import Endpoint
from mltrain.spot.notice import Kind, Notice, SourceError

ADDRESS = "http://169.254.169.254"
_EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
_NAME = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
_HEADERS = {"Metadata": "true"}
_FIRST_S = 130.0


class Azure:
    """Events about this machine."""

    name = "azure"
    # Microsoft's advice.
    every_s = 1.0

    def __init__(self, address: str = ADDRESS) -> None:
        self._endpoint = Endpoint(address)
        self._machine = ""
        self._enabled = False

    def standing(self) -> tuple[Notice, ...]:
        if not self._machine:
            self._machine = self._ask(_NAME).text
        answer = self._ask(_EVENTS) if self._enabled else self._ask(_EVENTS, _FIRST_S)
        self._enabled = True
        events = self._endpoint.object(_EVENTS, answer).get("Events", [])
        try:
            return tuple(_notice(event) for event in events if self._machine in event["Resources"])
        except (KeyError, TypeError, ValueError) as error:
            raise SourceError(f"{_EVENTS} lists an event that cannot be read ({error!r}): {events!r}") from error

    def _ask(self, path: str, timeout_s: float = 5.0) -> Any:
        answer = self._endpoint.ask(path, _HEADERS, timeout_s=timeout_s)
        if answer.status != 200:
            raise self._endpoint.refused(path, answer)
        return answer


def _notice(event: dict[str, Any]) -> Notice:
    kind = Kind.PAUSE if event["EventType"] == "Freeze" else Kind.LEAVING
    at = str(event.get("NotBefore") or "")
    deadline = parsedate_to_datetime(at).timestamp() if at else None
    text = f"{event['EventType']} {f'not before {at}' if at else 'has started'}"
    if event.get("Description"):
        text += f": {event['Description']}"
    return Notice(Azure.name, str(event["EventId"]), kind, text, deadline)
