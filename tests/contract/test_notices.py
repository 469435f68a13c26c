"""Every source of notices, against a server that speaks its protocol, or against a file."""

import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from mltrain.spot import Kind, Notice, Source, SourceError
from mltrain.spot.aws import Aws
from mltrain.spot.azure import Azure
from mltrain.spot.gcp import Maintenance, Preemption
from mltrain.spot.hooks import KUBERNETES, File, Url
from tests.support.metadata import Metadata, serving

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "spot.md"


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    with serving() as made:
        yield made


class SourceContract:
    """What a source promises. A subclass says how its service is asked, and what happens there."""

    name: str
    # Whether it says when.
    timed = True

    @pytest.fixture
    def service(self, metadata: Metadata, tmp_path: Path) -> Any:
        return metadata

    def source(self, service: Any) -> Source:
        raise NotImplementedError

    def announce(self, service: Any, at: float) -> None:
        """The node goes away at a time."""
        raise NotImplementedError

    def cancel(self, service: Any) -> None:
        raise NotImplementedError

    def break_down(self, service: Any) -> None:
        service.broken = 503

    def recover(self, service: Any) -> None:
        service.broken = None

    def test_what_stands_is_told_until_it_is_cancelled(self, service: Any) -> None:
        source, at = self.source(service), time.time() + 30
        assert source.standing() == ()
        self.announce(service, at)
        (notice,) = source.standing()
        assert notice.source == source.name == self.name
        assert notice.kind is Kind.LEAVING and notice.text
        if self.timed:
            assert notice.deadline is not None and abs(notice.deadline - at) < 2
        else:
            assert notice.deadline is None
        assert source.standing() == (notice,)
        self.cancel(service)
        assert source.standing() == ()

    def test_a_notice_that_stood_before_the_first_question_is_told(self, service: Any) -> None:
        self.announce(service, time.time() + 30)
        assert [notice.kind for notice in self.source(service).standing()] == [Kind.LEAVING]

    def test_a_failure_is_named_and_the_next_question_may_succeed(self, service: Any) -> None:
        source = self.source(service)
        source.standing()
        self.announce(service, time.time() + 30)
        self.break_down(service)
        for _ in range(2):
            with pytest.raises(SourceError, match=self._place(service)):
                source.standing()
        self.recover(service)
        assert len(source.standing()) == 1

    def _place(self, service: Any) -> str:
        return str(getattr(service, "address", service))


class HttpSourceContract(SourceContract):
    """What a source promises that is asked over HTTP."""

    @pytest.mark.parametrize("broken", [429, 500, 403, "cut"])
    def test_an_answer_that_is_none_is_not_taken_for_silence(self, metadata: Metadata, broken: int | str) -> None:
        source = self.source(metadata)
        metadata.broken = broken
        with pytest.raises(SourceError, match=metadata.address):
            source.standing()

    def test_nobody_at_the_address(self, metadata: Metadata) -> None:
        source = self.source(metadata)
        metadata.close()
        with pytest.raises(SourceError, match="ConnectionRefused"):
            source.standing()


class TestAws(HttpSourceContract):
    name = "aws"

    def source(self, service: Any) -> Source:
        return Aws(service.address)

    def announce(self, service: Any, at: float) -> None:
        service.interrupt(at)

    def cancel(self, service: Any) -> None:
        service.said.action = None

    def test_a_token_is_used_until_it_is_refused(self, metadata: Metadata) -> None:
        source = Aws(metadata.address)
        for _ in range(3):
            source.standing()
        assert metadata.requests.count(("PUT", "/latest/api/token")) == 1
        metadata.tokens.clear()
        metadata.interrupt(time.time() + 120)
        assert len(source.standing()) == 1
        assert metadata.requests.count(("PUT", "/latest/api/token")) == 2

    def test_a_token_that_is_refused_at_once_is_an_error(self, metadata: Metadata) -> None:
        metadata.token = lambda: "expired"  # type: ignore[method-assign]
        with pytest.raises(SourceError, match="instance-action answered HTTP 401: Unauthorized"):
            Aws(metadata.address).standing()

    def test_a_rebalance_recommendation_is_a_risk(self, metadata: Metadata) -> None:
        metadata.said.rebalance = {"noticeTime": "2026-11-23T08:22:00Z"}
        (notice,) = Aws(metadata.address).standing()
        assert notice.kind is Kind.RISK and notice.deadline is None and "2026-11-23T08:22:00Z" in notice.text

    def test_the_time_is_the_one_that_is_given(self, metadata: Metadata) -> None:
        metadata.said.action = {"action": "stop", "time": "2017-09-18T08:22:00Z"}
        assert Aws(metadata.address).standing() == (
            Notice("aws", "instance-action", Kind.LEAVING, "stop at 2017-09-18T08:22:00Z", 1505722920.0),
        )

    @pytest.mark.parametrize("action", [{"action": "terminate"}, {"action": "terminate", "time": "soon"}])
    def test_a_time_that_cannot_be_read(self, metadata: Metadata, action: dict[str, str]) -> None:
        metadata.said.action = action
        with pytest.raises(SourceError, match="want one like"):
            Aws(metadata.address).standing()

    def test_a_service_that_never_answers_is_not_waited_for(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(SourceError, match="timed out"):
            Aws(f"http://127.0.0.1:{silent.getsockname()[1]}").standing()

    def test_a_page_of_somebody_else(self, metadata: Metadata) -> None:
        metadata.broken = "garbage"
        with pytest.raises(SourceError, match="want a JSON object"):
            Aws(metadata.address).standing()


class TestGcpPreemption(HttpSourceContract):
    name = "gcp"

    def source(self, service: Any) -> Source:
        return Preemption(service.address, wait_s=1)

    def announce(self, service: Any, at: float) -> None:
        service.set_value("preempted", "TRUE")

    def cancel(self, service: Any) -> None:
        service.set_value("preempted", "FALSE")

    def test_a_change_ends_the_wait_for_it(self, metadata: Metadata) -> None:
        source = Preemption(metadata.address, wait_s=50)
        assert source.standing() == ()
        with ThreadPoolExecutor(1) as waiting:
            heard = waiting.submit(source.standing)
            metadata.set_value("preempted", "TRUE")
            assert len(heard.result(timeout=20)) == 1
        assert "last_etag=preempted-0" in metadata.requests[-1][1]

    def test_a_page_of_somebody_else(self, metadata: Metadata) -> None:
        metadata.broken = "garbage"
        with pytest.raises(SourceError, match="want TRUE or FALSE"):
            self.source(metadata).standing()


class TestGcpMaintenance(HttpSourceContract):
    name = "gcp"
    timed = False

    def source(self, service: Any) -> Source:
        return Maintenance(service.address, wait_s=1)

    def announce(self, service: Any, at: float) -> None:
        service.set_value("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE")

    def cancel(self, service: Any) -> None:
        service.set_value("maintenance-event", "NONE")

    def test_a_machine_that_moves_while_it_runs_pauses(self, metadata: Metadata) -> None:
        metadata.set_value("maintenance-event", "MIGRATE_ON_HOST_MAINTENANCE")
        assert [notice.kind for notice in self.source(metadata).standing()] == [Kind.PAUSE]

    def test_a_page_of_somebody_else(self, metadata: Metadata) -> None:
        metadata.broken = "garbage"
        with pytest.raises(SourceError, match="want NONE"):
            self.source(metadata).standing()


class TestAzure(HttpSourceContract):
    name = "azure"

    def source(self, service: Any) -> Source:
        return Azure(service.address)

    def announce(self, service: Any, at: float) -> None:
        service.schedule("Preempt", at)

    def cancel(self, service: Any) -> None:
        service.said.events.clear()

    def test_an_event_that_has_started_has_no_time_left(self, metadata: Metadata) -> None:
        metadata.schedule("Terminate", None)
        (notice,) = Azure(metadata.address).standing()
        assert notice.kind is Kind.LEAVING and notice.deadline is None and "started" in notice.text

    def test_events_of_other_machines_are_not_told(self, metadata: Metadata) -> None:
        metadata.schedule("Preempt", time.time() + 30, machine="worker-1", event="theirs")
        metadata.schedule("Reboot", time.time() + 900, event="ours")
        assert [notice.id for notice in Azure(metadata.address).standing()] == ["ours"]

    def test_a_freeze_is_a_pause(self, metadata: Metadata) -> None:
        metadata.schedule("Freeze", time.time() + 900)
        assert [notice.kind for notice in Azure(metadata.address).standing()] == [Kind.PAUSE]

    def test_nothing_is_acknowledged(self, metadata: Metadata) -> None:
        metadata.schedule("Preempt", time.time() + 30)
        Azure(metadata.address).standing()
        assert {method for method, _ in metadata.requests} == {"GET"}

    def test_an_event_that_cannot_be_read(self, metadata: Metadata) -> None:
        metadata.said.events.append({"EventId": "e-1"})
        with pytest.raises(SourceError, match="cannot be read"):
            Azure(metadata.address).standing()


class TestUrl(HttpSourceContract):
    name = "http"

    def source(self, service: Any) -> Source:
        return Url(f"{service.address}/hook?cluster=a")

    def announce(self, service: Any, at: float) -> None:
        service.said.hook = '{"deadline_s": 30, "text": "rack 7 is emptied"}'

    def cancel(self, service: Any) -> None:
        service.said.hook = None

    def test_its_path_and_query_are_asked_for(self, metadata: Metadata) -> None:
        self.source(metadata).standing()
        assert metadata.requests == [("GET", "/hook?cluster=a")]


class TestFile(SourceContract):
    name = "file"

    @pytest.fixture
    def service(self, metadata: Metadata, tmp_path: Path) -> Any:
        return tmp_path / "notice"

    def source(self, service: Any) -> Source:
        return File(str(service))

    def announce(self, service: Any, at: float) -> None:
        service.write_text('{"deadline_s": 30}')

    def cancel(self, service: Any) -> None:
        service.unlink()

    def break_down(self, service: Any) -> None:
        service.unlink()
        service.mkdir()

    def recover(self, service: Any) -> None:
        service.rmdir()
        service.write_text("again")

    @pytest.mark.parametrize(
        ("content", "text"), [("", "notice in "), ("rack 7\nis emptied", "rack 7"), ("[1]", "[1]")]
    )
    def test_any_content_is_a_notice(self, tmp_path: Path, content: str, text: str) -> None:
        path = tmp_path / "notice"
        path.write_text(content)
        os.utime(path, (0, time.time() - 2))
        (notice,) = File(str(path)).standing()
        assert notice.text.startswith(text) and notice.deadline is None

    def test_a_file_that_is_about_to_be_written_is_none_yet(self, tmp_path: Path) -> None:
        path = tmp_path / "notice"
        path.touch()
        assert File(str(path)).standing() == ()

    def test_the_hook_that_the_page_has_for_kubernetes_writes_one(self, tmp_path: Path) -> None:
        block = re.search(r"\n    lifecycle:\n(?:      .*\n)+", PAGE.read_text())
        assert block is not None
        command = YAML(typ="safe").load(block[0])["lifecycle"]["preStop"]["exec"]["command"]
        path = tmp_path / "notice"
        here = [word.replace(KUBERNETES, str(path)).replace("sleep 50", "true") for word in command]
        subprocess.run(here, check=True)
        assert here != command
        (notice,) = File(str(path)).standing()
        assert notice.deadline is not None and 50 < notice.deadline - time.time() < 61

    @pytest.mark.parametrize("deadline", ['"soon"', "true", "[1]", "1e999", "NaN", "9" * 400])
    def test_a_deadline_that_is_no_number(self, tmp_path: Path, deadline: str) -> None:
        path = tmp_path / "notice"
        path.write_text(f'{{"deadline_s": {deadline}}}')
        with pytest.raises(SourceError, match="want a number of seconds"):
            File(str(path)).standing()
