"""Make cloudrun-schema.json: the part of Cloud Run's API v1 that deploy/cloudrun/ uses.

Google's description of the API comes with the package google-api-python-client:

    pip download --no-deps google-api-python-client
    python tests/cloudrun_schema.py google_api_python_client-*.whl > tests/cloudrun-schema.json
"""

import json
import re
import sys
from zipfile import ZipFile

DOCUMENT = "googleapiclient/discovery_cache/documents/run.v1.json"
KINDS = (
    "Container",
    "ContainerPort",
    "EnvVar",
    "EnvVarSource",
    "HTTPGetAction",
    "HTTPHeader",
    "Probe",
    "ResourceRequirements",
    "RevisionSpec",
    "RevisionTemplate",
    "SecretKeySelector",
    "Service",
    "ServiceSpec",
    "TrafficTarget",
)
REQUIRED = {
    "Service": ["apiVersion", "kind", "metadata", "spec"],
    "ServiceSpec": ["template"],
    "RevisionSpec": ["containers"],
    "Container": ["image"],
    "EnvVar": ["name"],
    "SecretKeySelector": ["name", "key"],
}
NOT_OURS = ("status", "localObjectReference")  # written by Cloud Run; deprecated


def annotations(text: str, resource: str) -> list[str]:
    """Return the annotations that the description of a resource's metadata lists."""
    listed = re.findall(r"\* `([^`]+)`: ([A-Za-z, ]+?)[.,]? ?(?=\*|$)", text)
    return sorted(name for name, where in listed if re.search(rf"\b({resource}|All)\b", where))


def convert(field: dict) -> dict | None:
    """Return a field's JSON Schema; nothing if it is not supported or not needed."""
    if "Not supported by Cloud Run" in field.get("description", ""):
        return None
    if "$ref" in field:
        known = field["$ref"] in KINDS
        return {"$ref": f"#/$defs/{field['$ref']}"} if known else None
    if field["type"] == "array":
        items = convert(field["items"])
        return items and {"type": "array", "items": items}
    made = {"type": field["type"]} | ({"enum": field["enum"]} if "enum" in field else {})
    if field["type"] == "object":
        made["additionalProperties"] = convert(field["additionalProperties"])
    return made


def make_schema(document: dict) -> dict:
    """Return the schema of a service's file; fields that are not listed are refused."""
    defs = {}
    for kind in KINDS:
        fields = document["schemas"][kind]["properties"].items()
        made = {name: convert(field) for name, field in fields if name not in NOT_OURS}
        defs[kind] = {
            "type": "object",
            "properties": {name: field for name, field in made.items() if field},
            "additionalProperties": False,
        } | ({"required": REQUIRED[kind]} if kind in REQUIRED else {})
    listed = document["schemas"]["ObjectMeta"]["properties"]["annotations"]["description"]
    for kind, resource in (("Service", "Service"), ("RevisionTemplate", "Revision")):
        names = {"enum": annotations(listed, resource)}
        texts = {"type": "object", "additionalProperties": {"type": "string"}}
        defs[kind]["properties"]["metadata"] = {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "labels": texts,
                "annotations": texts | {"propertyNames": names},
            },
            "additionalProperties": False,
        }
    defs["Service"]["properties"]["apiVersion"] = {"const": "serving.knative.dev/v1"}
    defs["Service"]["properties"]["kind"] = {"const": "Service"}
    said = f"Made by tests/cloudrun_schema.py from run.v1, revision {document['revision']}."
    return {"$comment": said, "$defs": defs, "$ref": "#/$defs/Service"}


if __name__ == "__main__":
    with ZipFile(sys.argv[1]) as wheel:
        print(json.dumps(make_schema(json.loads(wheel.read(DOCUMENT))), indent=1))
