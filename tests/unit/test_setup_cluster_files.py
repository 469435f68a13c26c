"""The files in cluster/ are what those who read them accept, and say of markets what they ask for."""

import configparser
import copy
import json
import re
import shlex
import subprocess
import time
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pyspark
import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import GangResourceRequest  # type: ignore[attr-defined]
from ray.core.generated.common_pb2 import LabelSelectorOperator  # type: ignore[attr-defined]

import mltrain
from mltrain.features import packages
from mltrain.spot.hooks import KUBERNETES, File
from tests.support.vendor import SCHEMAS

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
_MARKET = "ray.io/market-type"
# What the nodes of each kind of Kubernetes cluster say of themselves: on spot, and on demand.
_NODES = {
    "karpenter": ({"karpenter.sh/capacity-type": "spot"}, {"karpenter.sh/capacity-type": "on-demand"}),
    "eks": ({"eks.amazonaws.com/capacityType": "SPOT"}, {"eks.amazonaws.com/capacityType": "ON_DEMAND"}),
    "gke": ({"cloud.google.com/gke-spot": "true"}, {}),
    "aks": ({"kubernetes.azure.com/scalesetpriority": "spot"}, {}),
}


def _yaml(name: str) -> Any:
    """As Ray and kubectl read it."""
    return yaml.safe_load((CLUSTER / name).read_text())


def _problems(document: Any, *names: str) -> list[str]:
    """Where a document differs from the first of these schemas; the others have definitions that it needs."""
    schemas = [json.loads((SCHEMAS / name).read_text()) for name in names]
    definitions = {key: value for schema in schemas for key, value in schema["$defs"].items()}
    validator = jsonschema.Draft202012Validator({"$ref": schemas[0]["$ref"], "$defs": definitions})
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


def _pod_problems(pod: Mapping[str, Any]) -> list[str]:
    assert (pod["apiVersion"], pod["kind"]) == ("v1", "Pod")
    return _problems({key: pod[key] for key in pod.keys() - {"apiVersion", "kind"}}, "pod-template.json")


def _asked_of_aws(node: Mapping[str, Any]) -> dict[str, Any]:
    return {**node["node_config"], "MinCount": 1, "MaxCount": 1}  # which Ray adds


def _locked(package: str) -> str:
    found = re.search(rf"^{package}==(\S+)", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)
    assert found, package
    return found[1]


class TestRayUp:
    @pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
    def test_ray_accepts_the_file(self, name: str) -> None:
        validate_config(prepare_config(_yaml(name)))

    @pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
    def test_ray_refuses_a_key_that_it_does_not_know(self, name: str) -> None:
        config = _yaml(name)
        config["available_node_types"]["head"]["label"] = {}
        with pytest.raises(jsonschema.ValidationError, match="label"):
            validate_config(prepare_config(config))

    @pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
    def test_nothing_is_installed_that_is_not_in_the_image(self, name: str) -> None:
        prepared = prepare_config(_yaml(name))
        assert [prepared[key] for key in ("setup_commands", "head_setup_commands", "worker_setup_commands")] == [[]] * 3

    def test_ec2_accepts_what_every_node_type_asks_for(self) -> None:
        for node in _yaml("aws.yaml")["available_node_types"].values():
            assert _problems(_asked_of_aws(node), "ec2-run-instances.json") == []

    def test_compute_engine_accepts_what_every_node_type_asks_for(self) -> None:
        for node in _yaml("gcp.yaml")["available_node_types"].values():
            assert _problems(node["node_config"], "compute-instance.json") == []

    def test_a_misspelt_setting_of_a_cloud_is_found(self) -> None:
        aws = _asked_of_aws(_yaml("aws.yaml")["available_node_types"]["spot-l4"])
        aws["MetadataOptions"] = {"HttpPutResponseHopsLimit": 2}
        assert "HttpPutResponseHopsLimit" in _problems(aws, "ec2-run-instances.json")[0]
        gcp = copy.deepcopy(_yaml("gcp.yaml")["available_node_types"]["spot-l4"]["node_config"])
        gcp["scheduling"]["provisioningModel"] = "spot"
        assert "'spot' is not one of" in _problems(gcp, "compute-instance.json")[0]

    @pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
    def test_labels_name_the_market_that_the_cloud_is_asked_for(self, name: str) -> None:
        for node in _yaml(name)["available_node_types"].values():
            asked = node["node_config"]
            on_aws = asked.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
            on_gcp = asked.get("scheduling", {}).get("provisioningModel") == "SPOT"
            assert node["labels"] == {_MARKET: "spot" if on_aws or on_gcp else "on-demand"}

    @pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
    def test_the_head_is_on_demand_and_workers_are_rather_on_spot_of_several_kinds(self, name: str) -> None:
        config = _yaml(name)
        types = config["available_node_types"]
        head = types.pop(config["head_node_type"])
        assert head["labels"][_MARKET] == "on-demand"
        spot = [node["priority"] for node in types.values() if node["labels"][_MARKET] == "spot"]
        others = [node["priority"] for node in types.values() if node["labels"][_MARKET] == "on-demand"]
        assert len(spot) > 1 and others and min(spot) > max(others)

    def test_the_fault_injection_service_accepts_the_interruption_of_a_worker_of_this_cluster(self) -> None:
        template = json.loads((CLUSTER / "aws-interruption.json").read_text())
        assert _problems({**template, "clientToken": "the command line adds one"}, "fis-experiment-template.json") == []
        assert template["targets"]["worker"]["resourceTags"] == {"ray-cluster-name": _yaml("aws.yaml")["cluster_name"]}


def _matches(term: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a node is one of a term of Kubernetes' node affinity (kubernetes.io, "Assigning Pods to Nodes")."""

    def met(wanted: Mapping[str, Any]) -> bool:
        among = labels.get(wanted["key"]) in wanted["values"]
        return among if wanted["operator"] == "In" else not among

    return all(met(wanted) for wanted in term["matchExpressions"])


def _required(pod_spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    affinity = pod_spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    terms: list[Mapping[str, Any]] = affinity["nodeSelectorTerms"]
    return terms


def _kinds(terms: Iterable[Mapping[str, Any]]) -> tuple[set[str], set[str]]:
    """The kinds of Kubernetes clusters on whose spot nodes, and on whose on-demand nodes, a pod may be."""
    spot, others = (
        {kind for kind, nodes in _NODES.items() if any(_matches(term, nodes[market]) for term in terms)}
        for market in (0, 1)
    )
    return spot, others


class TestKubeRay:
    def test_the_cluster_has_only_fields_that_kuberay_and_kubernetes_know(self) -> None:
        assert _problems(_yaml("kuberay.yaml"), "raycluster.json", "pod-template.json") == []

    @pytest.mark.parametrize("where", [("metadata",), ("spec",), ("spec", "headGroupSpec", "template", "spec")])
    def test_a_field_that_nobody_knows_is_found(self, where: tuple[str, ...]) -> None:
        cluster = _yaml("kuberay.yaml")
        place = cluster
        for key in where:
            place = place[key]
        place["nodeSelectors"] = {}
        assert any("nodeSelectors" in problem for problem in _problems(cluster, "raycluster.json", "pod-template.json"))

    def test_rays_autoscaler_reads_markets_priorities_and_gpus_from_it(self) -> None:
        types = _for_rays_autoscaler("kuberay.yaml")["available_node_types"]
        head, spot, others = types["headgroup"], types["spot"], types["on-demand"]
        assert [node["labels"][_MARKET] for node in (head, spot, others)] == ["on-demand", "spot", "on-demand"]
        assert spot["priority"] > others["priority"]
        assert [node["resources"].get("GPU", 0) for node in (head, spot, others)] == [0, 1, 1]

    def test_pods_are_on_nodes_of_the_market_that_their_label_names(self) -> None:
        spec = _yaml("kuberay.yaml")["spec"]
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            spot, others = _kinds(_required(group["template"]["spec"]))
            expected = (set(_NODES), set()) if group["labels"][_MARKET] == "spot" else (set(), set(_NODES))
            assert (spot, others) == expected

    def test_the_hook_gives_a_notice_and_leaves_the_training_its_time(self, tmp_path: Path) -> None:
        for group in _yaml("kuberay.yaml")["spec"]["workerGroupSpecs"]:
            pod = group["template"]["spec"]
            grace_s = pod["terminationGracePeriodSeconds"]
            shell, flag, script = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
            waits = re.search(r"; sleep (\d+)$", script)
            assert waits and grace_s - 15 <= int(waits[1]) < grace_s
            notice = tmp_path / "notice"
            here = script[: waits.start()].replace(KUBERNETES, shlex.quote(str(notice)))
            subprocess.run([shell, flag, here], check=True)
            (said,) = File(str(notice), "kubernetes").standing()
            assert said.deadline is not None and 0 < said.deadline - time.time() <= grace_s

    def test_its_ray_is_the_one_in_the_image(self) -> None:
        assert _yaml("kuberay.yaml")["spec"]["rayVersion"] == _locked("ray")


def _for_rays_autoscaler(name: str) -> Any:
    content = _yaml(name)
    if name != "kuberay.yaml":
        return prepare_config(content)
    content["metadata"]["namespace"] = "default"  # which Kubernetes adds
    return _derive_autoscaling_config_from_ray_cr(content)


def _started(name: str, market: str | None, *, dry: str | None = None) -> dict[str, int]:
    """What Ray's autoscaler starts for two workers, each in a group of its own, while one type cannot be had."""
    config = AutoscalingConfig(configs=_for_rays_autoscaler(name), skip_content_hash=True)
    wanted = [[(_MARKET, LabelSelectorOperator.Value("LABEL_OPERATOR_IN"), [market])]] if market else None
    worker = ResourceRequestUtil.make({"CPU": 6, "GPU": 1}, label_selectors=wanted)
    request = SchedulingRequest(
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_nodes(),
        gang_resource_requests=[GangResourceRequest(requests=[worker])] * 2,
        recoverable_resource_availabilities={dry: 0.0} if dry else {},
        disable_launch_config_check=True,
    )
    return {each.instance_type: each.count for each in ResourceDemandScheduler(None).schedule(request).to_launch}


class TestRaysAutoscaler:
    @pytest.mark.parametrize(
        ("name", "spot", "on_demand"),
        [
            ("aws.yaml", "spot-l4", "on-demand-l4"),
            ("gcp.yaml", "spot-l4", "on-demand-l4"),
            ("kuberay.yaml", "spot", "on-demand"),
        ],
    )
    def test_it_starts_nodes_of_the_market_that_a_worker_asks_for_and_rather_spot(
        self, name: str, spot: str, on_demand: str
    ) -> None:
        assert _started(name, "spot") == {spot: 2}
        assert _started(name, "on-demand") == {on_demand: 2}
        assert _started(name, None) == {spot: 2}

    @pytest.mark.parametrize(("name", "other"), [("aws.yaml", "spot-a10g"), ("gcp.yaml", "spot-a100")])
    def test_it_goes_on_to_another_kind_of_spot_where_one_cannot_be_had(self, name: str, other: str) -> None:
        assert _started(name, "spot", dry="spot-l4") == {other: 2}


def _spark_conf() -> dict[str, str]:
    lines = (CLUSTER / "spark" / "kubernetes.conf").read_text().splitlines()
    return dict(line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))


def _texts_of_spark() -> set[bytes]:
    """The constants of the classes in which the installed Spark declares its settings."""
    jars = Path(pyspark.__file__).with_name("jars")
    places = {"core": "org/apache/spark/internal/config/package", "kubernetes": "org/apache/spark/deploy/k8s/Config"}
    texts: set[bytes] = set()
    for module, start in places.items():
        (jar,) = jars.glob(f"spark-{module}_*.jar")
        with zipfile.ZipFile(jar) as archive:
            for name in archive.namelist():
                if name.startswith(start) and name.endswith(".class"):
                    # A text in a class file: a tag of 1, then two bytes of length.
                    texts |= set(re.findall(rb"\x01[\x00\x01].(\x01?[\w.$/-]+)", archive.read(name), flags=re.DOTALL))
    return texts


def _declared(key: str, texts: set[bytes]) -> bool:
    """Whether Spark has this key: whole, or put together of a prefix and the rest (a 1 stands for the prefix)."""
    prefix, _, rest = key.rpartition(".")
    whole = key.encode() in texts
    return whole or (prefix.encode() in texts and f"\x01.{rest}".encode() in texts)


class TestSparkOnKubernetes:
    @pytest.mark.parametrize("name", ["driver.yaml", "executor.yaml"])
    def test_the_template_has_only_fields_that_kubernetes_knows(self, name: str) -> None:
        pod = _yaml(f"spark/{name}")
        assert _pod_problems(pod) == []
        pod["spec"]["toleration"] = []
        assert any("toleration" in problem for problem in _pod_problems(pod))

    def test_every_setting_is_one_that_the_installed_spark_declares(self) -> None:
        texts = _texts_of_spark()
        assert [key for key in _spark_conf() if not _declared(key, texts)] == []
        assert not _declared("spark.kubernetes.executor.terminationGracePeriod", texts)

    def test_the_jars_are_those_that_mltrain_needs(self) -> None:
        conf = _spark_conf()
        assert conf["spark.jars.packages"] == packages.packages()
        assert conf["spark.jars.excludes"] == packages.excludes()

    def test_the_templates_are_where_the_settings_say(self) -> None:
        named = [value for key, value in _spark_conf().items() if key.endswith("podTemplateFile")]
        assert len(named) == 2 and all((ROOT / name).is_file() for name in named)

    def test_the_driver_is_on_demand_and_executors_rather_on_spot(self) -> None:
        assert _kinds(_required(_yaml("spark/driver.yaml")["spec"])) == (set(), set(_NODES))
        wanted = _yaml("spark/executor.yaml")["spec"]["affinity"]["nodeAffinity"]
        terms = [each["preference"] for each in wanted["preferredDuringSchedulingIgnoredDuringExecution"]]
        assert _kinds(terms) == (set(_NODES), set())


def _instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", (CLUSTER / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def _of(word: str) -> list[str]:
    return [rest for each, rest in _instructions() if each == word]


class TestImage:
    def test_it_has_instructions_that_docker_knows(self) -> None:
        known = {"ARG", "COPY", "ENTRYPOINT", "ENV", "FROM", "RUN", "USER", "WORKDIR"}
        assert {word for word, _ in _instructions()} <= known

    def test_what_it_copies_is_in_the_checkout_or_in_an_earlier_stage(self) -> None:
        stages: set[str] = set()
        for word, rest in _instructions():
            if word == "FROM":
                base, _, name = rest.partition(" AS ")
                assert "$" in base or base in stages
                stages.add(name)
            for stage in re.findall(r"from=([\w-]+)", rest):
                assert stage in stages
            if word == "COPY" and "--from" not in rest:
                assert all((ROOT / source).exists() for source in rest.split()[:-1])
        assert name == "ray", "what is built without --target"

    def test_every_argument_has_a_use_and_a_value(self) -> None:
        text = (CLUSTER / "Dockerfile").read_text()
        values = dict(each.split("=") for each in _of("ARG") if "=" in each)
        for name in {each.partition("=")[0] for each in _of("ARG")}:
            assert values[name] and f"${{{name}}}" in text
        assert values["SPARK"] == _locked("pyspark")

    def test_python_is_one_that_mltrain_supports(self) -> None:
        config = configparser.ConfigParser()
        config.read(ROOT / "setup.cfg")
        (version,) = [each.removeprefix("PYTHON=") for each in _of("ARG") if each.startswith("PYTHON=")]
        assert f"Programming Language :: Python :: {version}" in config["metadata"]["classifiers"]

    def test_shell_steps_are_sound(self) -> None:
        for step in _of("RUN"):
            script = re.sub(r"^(--mount=\S+\s+)*", "", step)
            done = subprocess.run(["sh", "-n", "-c", script], capture_output=True, text=True, check=False)
            assert done.stderr == ""

    def test_everybody_names_the_image_of_this_version(self) -> None:
        named = [_yaml("aws.yaml")["docker"]["image"], _yaml("gcp.yaml")["docker"]["image"]]
        spec = _yaml("kuberay.yaml")["spec"]
        groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
        named += [group["template"]["spec"]["containers"][0]["image"] for group in groups]
        assert {image.rpartition("/")[2] for image in named} == {f"mltrain:{mltrain.__version__}"}
        spark = _spark_conf()["spark.kubernetes.container.image"]
        assert spark.rpartition("/")[2] == f"mltrain-spark:{mltrain.__version__}"
