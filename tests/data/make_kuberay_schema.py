"""Makes `kuberay_crds.json` of KubeRay's custom resource definitions, for `tests/unit/test_cluster_files.py`.

    python tests/data/make_kuberay_schema.py helm-chart/kuberay-operator/crds v1.7.0

in a checkout of KubeRay, with its folder of definitions and its version. What says nothing about a file's validity is
left out (descriptions, defaults, the status, hints for servers), and what occurs more than once, such as a pod, stands
once under `$defs`.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

KINDS = ("raycluster", "rayjob", "rayservice")
SAYS_NOTHING = ("description", "default", "format", "status")
REPEATED_BYTES = 120  # of a part that is worth a definition of its own


def compact(schema: Any, in_properties: bool = False) -> Any:
    """A schema without what says nothing, in which objects have no other properties than those named.

    Custom resources lose fields that their definition does not name, without a word: here they are errors.
    """
    if isinstance(schema, list):
        return [compact(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if in_properties:
        return {name: compact(part) for name, part in schema.items()}
    kept = {
        name: compact(part, name == "properties")
        for name, part in schema.items()
        if name not in SAYS_NOTHING and not name.startswith("x-kubernetes-")
    }
    if "properties" in kept and "additionalProperties" not in kept:
        kept["additionalProperties"] = False
    return kept


def share(schemas: dict[str, Any]) -> dict[str, Any]:
    """Replace parts that occur more than once by references to `$defs`."""
    counts: Counter[str] = Counter()

    def count(part: Any) -> None:
        if isinstance(part, dict):
            counts[json.dumps(part, sort_keys=True)] += 1
        for item in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            count(item)

    count(schemas)
    names = {
        text: f"d{number}"
        for number, text in enumerate(
            text for text, times in counts.items() if times > 1 and len(text) > REPEATED_BYTES
        )
    }
    definitions: dict[str, Any] = {}

    def replace(part: Any) -> Any:
        if isinstance(part, list):
            return [replace(item) for item in part]
        if not isinstance(part, dict):
            return part
        name = names.get(json.dumps(part, sort_keys=True))
        inner = {key: replace(item) for key, item in part.items()}
        if name is None or "type" not in part:  # maps of properties are no schemas
            return inner
        definitions[name] = inner
        return {"$ref": f"#/$defs/{name}"}

    return {"kinds": {kind: replace(schema) for kind, schema in schemas.items()}, "$defs": definitions}


def main() -> None:
    """Write the file."""
    folder, version = Path(sys.argv[1]), sys.argv[2]
    schemas = {}
    for kind in KINDS:
        definition = yaml.safe_load((folder / f"ray.io_{kind}s.yaml").read_text(encoding="utf-8"))["spec"]
        (v1,) = [entry for entry in definition["versions"] if entry["name"] == "v1"]
        schema = compact(v1["schema"]["openAPIV3Schema"])
        schema["properties"].pop("status", None)
        schemas[definition["names"]["kind"]] = schema
    made = {
        "source": "https://github.com/ray-project/kuberay, helm-chart/kuberay-operator/crds",
        "version": version,
        "licence": "Apache-2.0",
        **share(schemas),
    }
    target = Path(__file__).with_name("kuberay_crds.json")
    target.write_text(json.dumps(made, separators=(",", ":"), sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
