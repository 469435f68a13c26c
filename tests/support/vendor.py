"""Makes the JSON schemas in ``tests/support/schemas`` of what their publishers ship in Python packages.

Only what one kind of document can hold is kept, without descriptions, and a field that is not known is an error:

    pip download --no-deps -d WHEELS kubernetes-validate==1.37.0 botocore==1.44.5 google-api-python-client==2.202.0
    python -m tests.support.vendor WHEELS

``raycluster.json`` is not made here: `schemas/README.md` says why.
"""

import gzip
import json
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCHEMAS = Path(__file__).with_name("schemas")
_SCALARS = {
    "blob": "string",
    "boolean": "boolean",
    "double": "number",
    "float": "number",
    "integer": "integer",
    "long": "integer",
    "string": "string",
    "timestamp": "string",
}

Schema = dict[str, Any]


def kubernetes(definitions: Mapping[str, Schema], root: str) -> Schema:
    """Of kubernetes-validate's strict definitions, which are JSON schemas already."""

    def kept(node: Any) -> Any:
        if isinstance(node, list):
            return [kept(each) for each in node]
        if not isinstance(node, dict):
            return node
        # A property may be called "description": then it is a schema, not a text.
        return {
            key: kept(value)
            for key, value in node.items()
            if not key.startswith("x-kubernetes") and not (key == "description" and isinstance(value, str))
        }

    return _reachable({name: kept(definition) for name, definition in definitions.items()}, root)


def aws(shapes: Mapping[str, Schema], root: str) -> Schema:
    """Of a service model of botocore."""

    def converted(shape: Schema) -> Schema:
        kind = shape["type"]
        if kind == "structure":
            members = {name: _ref(member["shape"]) for name, member in shape["members"].items()}
            made = {"type": "object", "properties": members, "additionalProperties": False}
            return made | ({"required": shape["required"]} if "required" in shape else {})
        if kind == "list":
            return {"type": "array", "items": _ref(shape["member"]["shape"])}
        if kind == "map":
            return {"type": "object", "additionalProperties": _ref(shape["value"]["shape"])}
        return {"type": _SCALARS[kind]} | ({"enum": shape["enum"]} if "enum" in shape else {})

    return _reachable({name: converted(shape) for name, shape in shapes.items()}, root)


def google(schemas: Mapping[str, Schema], root: str) -> Schema:
    """Of a discovery document of a Google API."""

    def converted(schema: Schema) -> Schema:
        if "$ref" in schema:
            return _ref(schema["$ref"])
        made: Schema = {key: schema[key] for key in ("type", "enum") if key in schema}
        if "items" in schema:
            made["items"] = converted(schema["items"])
        if schema.get("type") == "object":
            made["properties"] = {name: converted(each) for name, each in schema.get("properties", {}).items()}
            others = schema.get("additionalProperties")
            made["additionalProperties"] = converted(others) if others else False
        return made

    return _reachable({name: converted(schema) for name, schema in schemas.items() if "type" in schema}, root)


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _reachable(definitions: Mapping[str, Schema], root: str) -> Schema:
    """The schema of ``root``, with the definitions that it needs."""

    def named(node: Any) -> list[str]:
        if isinstance(node, list):
            return [name for each in node for name in named(each)]
        if not isinstance(node, dict):
            return []
        own = [node["$ref"].rpartition("/")[2]] if isinstance(node.get("$ref"), str) else []
        return own + [name for each in node.values() for name in named(each)]

    needed, waiting = set(), [root]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += named(definitions[name])
    return _ref(root) | {"$defs": {name: definitions[name] for name in sorted(needed)}}


def _write(name: str, schema: Schema) -> None:
    """A line a definition: what changes from one version to the next can be read."""
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in schema["$defs"].items())
    text = f'{{"$ref": {json.dumps(schema["$ref"])}, "$defs": {{\n{lines}\n}}}}\n'
    (SCHEMAS / name).write_text(text)


def main(wheels: Path) -> None:
    """Writes the schemas anew from the packages in a directory."""

    def member(package: str, end: str) -> Any:
        (wheel,) = wheels.glob(f"{package}-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [each for each in archive.namelist() if each.endswith(end)]
            content = archive.read(name)
        return json.loads(gzip.decompress(content) if end.endswith(".gz") else content)

    pods = member("kubernetes_validate", "/v1.37.0-local-strict/_definitions.json")["$defs"]
    _write("pod-template.json", kubernetes(pods, "io.k8s.api.core.v1.PodTemplateSpec"))
    ec2 = member("botocore", "/data/ec2/2016-11-15/service-2.json.gz")["shapes"]
    _write("ec2-run-instances.json", aws(ec2, "RunInstancesRequest"))
    fis = member("botocore", "/data/fis/2020-12-01/service-2.json.gz")["shapes"]
    _write("fis-experiment-template.json", aws(fis, "CreateExperimentTemplateRequest"))
    compute = member("google_api_python_client", "/documents/compute.v1.json")["schemas"]
    _write("compute-instance.json", google(compute, "Instance"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
