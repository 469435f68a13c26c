"""What follows from notices, and where one would come from."""

from pathlib import Path
from typing import Any

import pytest

from mltrain import config as configs
from mltrain.config import Experiment, Notices
from mltrain.errors import ConfigError
from mltrain.spot import LEAD_S, Action, Kind, Notice, decide, whereabouts
from mltrain.spot.watch import sources

NOW = 1_000_000.0


def notice(in_s: float | None = None, kind: Kind = Kind.LEAVING, id: str = "a") -> Notice:
    return Notice("test", id, kind, "text", None if in_s is None else NOW + in_s)


@pytest.mark.parametrize(
    ("standing", "action"),
    [
        ([], Action.STAY),
        ([notice(kind=Kind.RISK)], Action.STAY),
        ([notice(600, Kind.PAUSE)], Action.STAY),
        ([notice()], Action.DRAIN),
        ([notice(30)], Action.DRAIN),
        ([notice(-5)], Action.DRAIN),
        ([notice(LEAD_S)], Action.DRAIN),
        ([notice(LEAD_S + 1)], Action.WAIT),
        ([notice(7 * 86_400)], Action.WAIT),
        ([notice(kind=Kind.RISK), notice(3600, id="b")], Action.WAIT),
    ],
)
def test_a_node_is_drained_when_it_goes_away_soon(standing: list[Notice], action: Action) -> None:
    assert decide(standing, NOW).action is action


def test_the_most_urgent_notice_decides() -> None:
    later, sooner = notice(3600, id="later"), notice(60, id="sooner")
    for standing in ([later, sooner], [sooner, later]):
        decision = decide(standing, NOW)
        assert decision.action is Action.DRAIN and decision.reason == sooner and decision.deadline == NOW + 60
    assert decide([later, notice()], NOW).deadline is None


def test_who_waits_knows_how_long() -> None:
    decision = decide([notice(1000)], NOW)
    assert decision.again_s == 1000 - LEAD_S
    assert decide([notice(1000)], NOW + decision.again_s).action is Action.DRAIN


def machine(root: Path, **fields: str) -> Path:
    folder = root / "sys/class/dmi/id"
    folder.mkdir(parents=True)
    for name, value in fields.items():
        (folder / name).write_text(f"{value}\n")
    return root


@pytest.mark.parametrize(
    ("fields", "environment", "expected"),
    [
        ({}, {}, ()),
        ({"sys_vendor": "Dell Inc.", "product_name": "XPS 13"}, {}, ()),
        ({"sys_vendor": "Amazon EC2", "product_name": "g5.xlarge"}, {}, ("aws",)),
        ({"sys_vendor": "Xen", "product_uuid": "EC2F58AF-2DAD-C57E-88C0-A81CB6084290"}, {}, ("aws",)),
        ({"sys_vendor": "Google", "product_name": "Google Compute Engine"}, {}, ("gcp",)),
        (
            {"sys_vendor": "Microsoft Corporation", "chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77"},
            {},
            ("azure",),
        ),
        ({"sys_vendor": "Microsoft Corporation", "product_name": "Surface"}, {}, ()),
        ({"sys_vendor": "Amazon EC2"}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, ("aws", "kubernetes")),
        ({}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, ("kubernetes",)),
    ],
)
def test_a_machine_knows_where_it_is(
    tmp_path: Path, fields: dict[str, str], environment: dict[str, str], expected: tuple[str, ...]
) -> None:
    assert whereabouts.found(machine(tmp_path, **fields), environment) == expected


def test_a_machine_without_firmware_tables_is_nowhere(tmp_path: Path) -> None:
    assert whereabouts.found(tmp_path, {}) == ()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("off", []),
        ("aws", ["aws"]),
        ("gcp", ["gcp", "gcp"]),
        ("azure", ["azure"]),
        ("kubernetes", ["kubernetes"]),
        ({"source": "kubernetes", "address": "/run/notice"}, ["kubernetes"]),
        ({"source": "file", "address": "/run/notice"}, ["file"]),
        ({"source": "http", "address": "https://hooks.example:8443/{address}"}, ["http"]),
        ({"source": "aws", "address": "http://127.0.0.1:1338"}, ["aws"]),
    ],
)
def test_a_config_names_its_sources(given: Any, expected: list[str]) -> None:
    config = Notices.model_validate(given)
    assert [source.name for source in sources(config, "10.0.0.7")] == expected
    assert Notices.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("asw", "want auto, off, aws, gcp, azure, kubernetes, file or http"),
        (5, "want the name of a source, or a mapping with source and address"),
        ({"source": "file"}, "source file needs address, an absolute path"),
        ({"source": "file", "address": "notice"}, "'notice': want an absolute path"),
        ({"source": "http"}, "source http needs address, a URL"),
        ({"source": "http", "address": "hooks.example/a"}, "want http://host or https://host"),
        ({"source": "gcp", "address": "http://h:99999"}, "want http://host or https://host"),
        ({"source": "auto", "address": "/run/notice"}, "does not go with source auto"),
        ({"addres": "/run/notice"}, "did you mean cluster.notices.address?"),
    ],
)
def test_a_config_that_names_none_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        configs.parse({"name": "a", "dataset": "d", "model": {}, "cluster": {"notices": given}})
    assert message in str(error.value)


def test_a_config_without_them_listens_where_it_is() -> None:
    parsed = configs.parse({"name": "a", "dataset": "d", "model": {}})
    assert isinstance(parsed, Experiment) and parsed.cluster.notices == Notices(source="auto")
