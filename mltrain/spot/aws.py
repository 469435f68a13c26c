"""EC2's instance metadata, version 2: interruption notices and rebalance recommendations.

Paths, fields and the advice to ask every 5 s are from the EC2 user guide ("Spot Instance interruption notices", "EC2
instance rebalance recommendations", "Use the Instance Metadata Service"): a session token is had with PUT, lives for
six hours at most and goes with every question; 401 means that it is not valid any more, 404 that there is no notice.
"""

from datetime import datetime
from typing import Any

from mltrain.spot.endpoint import Endpoint
from mltrain.spot.notice import Kind, Notice, SourceError

ADDRESS = "http://169.254.169.254"
_TOKEN = "/latest/api/token"
_ACTION = "/latest/meta-data/spot/instance-action"
_REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
_TOKEN_LIVES_S = 21_600


class Aws:
    """Notices come two minutes ahead; a recommendation says that one is likelier than usual."""

    name = "aws"
    every_s = 5.0

    def __init__(self, address: str = ADDRESS) -> None:
        self._endpoint = Endpoint(address)
        self._token = ""

    def standing(self) -> tuple[Notice, ...]:
        found = []
        if (action := self._look(_ACTION)) is not None:
            text, at = str(action.get("action")), str(action.get("time"))
            found.append(Notice(self.name, "instance-action", Kind.LEAVING, f"{text} at {at}", _seconds(at)))
        if (advice := self._look(_REBALANCE)) is not None:
            text = f"rebalance recommendation of {advice.get('noticeTime')}"
            found.append(Notice(self.name, "rebalance", Kind.RISK, text))
        return tuple(found)

    def _look(self, path: str) -> dict[str, Any] | None:
        if not self._token:
            self._renew()
        answer = self._endpoint.ask(path, {"X-aws-ec2-metadata-token": self._token})
        if answer.status == 401:
            self._renew()
            answer = self._endpoint.ask(path, {"X-aws-ec2-metadata-token": self._token})
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise self._endpoint.refused(path, answer)
        return self._endpoint.object(path, answer)

    def _renew(self) -> None:
        lives = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_LIVES_S)}
        answer = self._endpoint.ask(_TOKEN, lives, method="PUT")
        if answer.status != 200:
            raise self._endpoint.refused(_TOKEN, answer)
        self._token = answer.text


def _seconds(time: str) -> float:
    try:
        return datetime.fromisoformat(time).timestamp()
    except ValueError as error:
        raise SourceError(f"{_ACTION} has the time {time!r}; want one like 2026-01-31T12:00:00Z") from error
