"""kuberay_cluster.yaml meets the schema of KubeRay's RayCluster, and is the cluster of ray_cluster.yaml."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from tests.conftest import CHECKOUT

GUIDE = (CHECKOUT / "docs" / "cluster.md").read_text()
CLAIM, POLICY, CLUSTER = yaml.safe_load_all((CHECKOUT / "kuberay_cluster.yaml").read_text())
LAUNCHER = yaml.safe_load((CHECKOUT / "ray_cluster.yaml").read_text())


def strict(schema: Any) -> Any:
    """Return a schema that refuses unknown fields, which Kubernetes would drop without a word."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    return closed | {"additionalProperties": False} if isinstance(schema.get("properties"), dict) else closed


SCHEMA = strict(yaml.safe_load(Path(__file__).with_name("raycluster_schema.yaml").read_text()))


def groups() -> list[dict[str, Any]]:
    return [CLUSTER["spec"]["headGroupSpec"], *CLUSTER["spec"]["workerGroupSpecs"]]


def container(group: dict[str, Any]) -> dict[str, Any]:
    (only,) = group["template"]["spec"]["containers"]
    return only


def test_the_cluster_meets_the_schema():
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.validate(CLUSTER, SCHEMA)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("headGroupSpec",), None),
        (("headGroupSpec", "template"), None),
        (("headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("headGroupSpec", "template", "spec", "containers"), None),
        (("headGroupSpec", "template", "spec", "containers", 0, "image"), 7),
        (("headGroupSpec", "template", "spec", "containers", 0, "port"), []),
        (("headGroupSpec", "template", "spec", "containers", 0, "env", 0, "value"), 1),
        (("headGroupSpec", "template", "spec", "containers", 0, "resources", "limits", "memory"), "16 GB"),
        (("headGroupSpec", "template", "spec", "volumes", 0, "persistentVolumeClaim", "claimName"), None),
        (("authOptions", "mode"), "tokens"),
        (("workerGroupSpec",), []),
        (("autoscalerOptions", "idleTimeoutMinutes"), 10),
        (("workerGroupSpecs", 0, "groupName"), None),
        (("workerGroupSpecs", 0, "maxReplicas"), "4"),
    ],
)
def test_a_broken_cluster_is_refused(where, value):
    """None deletes the key."""
    broken = copy.deepcopy(CLUSTER)
    inner = broken["spec"]
    for key in where[:-1]:
        inner = inner[key]
    if value is None:
        del inner[where[-1]]
    else:
        inner[where[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCHEMA)


def test_it_is_the_cluster_of_ray_cluster_yaml():
    spec = CLUSTER["spec"]
    assert CLUSTER["metadata"]["name"] == LAUNCHER["cluster_name"]
    assert f"\nray=={spec['rayVersion']} " in (CHECKOUT / "requirements.lock").read_text()
    assert spec["autoscalerOptions"]["idleTimeoutSeconds"] == 60 * LAUNCHER["idle_timeout_minutes"]
    head, worker = (LAUNCHER["available_node_types"][name] for name in ("head", "gpu_worker"))
    start = spec["headGroupSpec"]["rayStartParams"]
    assert {"CPU": int(start["num-cpus"]), "GPU": int(start["num-gpus"])} == head["resources"]
    (group,) = spec["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == (worker["min_workers"], worker["max_workers"])
    limits = container(group)["resources"]["limits"]
    assert {"CPU": int(limits["cpu"]), "GPU": int(limits["nvidia.com/gpu"])} == worker["resources"]
    ports = {port["name"]: port["containerPort"] for port in container(spec["headGroupSpec"])["ports"]}
    (command,) = [line for line in LAUNCHER["head_start_ray_commands"] if "--head" in line]
    assert ports == {
        "gcs-server": int(re.findall(r"--port=(\d+)", command)[0]),
        "dashboard": int(re.findall(r"--dashboard-port=(\d+)", command)[0]),
    }
    assert f"--dashboard-host={start['dashboard-host']}" in command
    assert "--disable-usage-stats" in command
    for each in groups():
        variables = {variable["name"]: variable["value"] for variable in container(each)["env"]}
        assert variables["RAY_USAGE_STATS_ENABLED"] == "0"
        assert any(f"SEEDBED_WORK={variables['SEEDBED_WORK']}'" in line for line in LAUNCHER["setup_commands"])


def test_only_pods_with_the_token_and_of_this_cluster_reach_ray():
    assert CLUSTER["spec"]["authOptions"] == {"mode": "token"}
    pods = {"matchLabels": {"ray.io/cluster": CLUSTER["metadata"]["name"]}}
    assert POLICY["spec"] == {
        "podSelector": pods,
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": pods}]}],
    }


def test_all_pods_have_one_image_and_the_same_folders():
    first = groups()[0]["template"]["spec"]
    for group in groups():
        pod = group["template"]["spec"]
        assert container(group)["image"] == container(groups()[0])["image"]
        assert pod["securityContext"] == first["securityContext"]
        assert pod["volumes"] == first["volumes"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container(group)["volumeMounts"]}
        assert mounts == {"shared": "/shared", "cache": "/cache"}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["shared"]["persistentVolumeClaim"]["claimName"] == CLAIM["metadata"]["name"]
        assert "emptyDir" in volumes["cache"]
    assert CLAIM["spec"]["accessModes"] == ["ReadWriteMany"]


def test_the_guide_builds_the_image_and_uses_the_manifest():
    assert "kubectl apply -f kuberay_cluster.yaml" in GUIDE
    (dockerfile,) = re.findall(r"<<'DOCKERFILE'\n(.*?)\nDOCKERFILE", GUIDE, flags=re.DOTALL)
    (version,) = re.findall(r"uv==([\d.]+)", dockerfile)
    assert f"UV_VERSION := {version}\n" in (CHECKOUT / "Makefile").read_text()
    assert "--require-hashes -r /requirements.lock" in dockerfile
    user = groups()[0]["template"]["spec"]["securityContext"]["runAsUser"]
    assert f"--uid {user}" in dockerfile
    assert 'cache = "/cache/' in GUIDE
    secret = container(groups()[0])["envFrom"][0]["secretRef"]["name"]
    assert f"kubectl create secret generic {secret} " in GUIDE
