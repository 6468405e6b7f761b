"""Validate the files of ``cluster/`` offline: Ray's launcher schema, the KubeRay fields in use, and the image."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from rlgaf_ray.config import load_config

REPOSITORY = Path(__file__).parents[3]
CLUSTER = REPOSITORY / "cluster"
LAUNCHERS = ["aws", "gcp", "onprem"]


def read(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


def test_readme_lists_every_file() -> None:
    readme = (CLUSTER / "README.md").read_text()
    names = {path.name for path in CLUSTER.iterdir() if path.is_file() and path.name != "README.md"}
    assert {name for name in names if f"`{name}`" not in readme} == set()
    assert names == {
        *(f"{name}.yaml" for name in LAUNCHERS),
        *("raycluster.yaml", "rayjob.yaml", "network_policy.yaml", "Dockerfile", "local_cluster.py"),
    }


# Ray's cluster launcher.


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launcher_files_pass_rays_schema(name: str) -> None:
    prepared = prepare_config(read(f"{name}.yaml"))
    validate_config(prepared)
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepared | {"head_node": 3})


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launchers_require_the_token_and_keep_the_dashboard_local(name: str) -> None:
    config = read(f"{name}.yaml")
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    starts = [line for key in ("head_start_ray_commands", "worker_start_ray_commands") for line in config[key]]
    starts = [line for line in starts if "ray start" in line]
    exported = "export RAY_AUTH_MODE=token RAY_free_objects_period_milliseconds=0;"
    assert len(starts) == 2 and all(line.startswith(exported) for line in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0] and "--autoscaling-config=" in starts[0]


def test_on_aws_ssh_is_open_to_one_address_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group that Ray creates gets Ray's own rules too, whatever the file says: SSH from everywhere."""
    pytest.importorskip("boto3", reason="Ray's launcher for AWS needs it")
    from ray.autoscaler._private.aws import config as launcher

    rules: list[dict[str, Any]] = []

    def create(conf: Any, node_types: list[str]) -> dict[str, Any]:
        group = SimpleNamespace(
            id="sg-ray", ip_permissions=[], authorize_ingress=lambda IpPermissions: rules.extend(IpPermissions)
        )
        return dict.fromkeys(node_types, group)

    def configured(config: dict[str, Any]) -> dict[str, list[str]]:
        launcher._configure_security_group(config)
        return {name: kind["node_config"]["SecurityGroupIds"] for name, kind in config["available_node_types"].items()}

    monkeypatch.setattr(launcher, "_get_or_create_vpc_security_groups", create)
    config = prepare_config(read("aws.yaml"))
    assert configured(copy.deepcopy(config)) == {key: ["sg-EXAMPLE"] for key in ("head", "training", "rollout")}
    assert not open_to_everyone(rules)
    for kind in config["available_node_types"].values():
        del kind["node_config"]["SecurityGroupIds"]
    assert set(map(tuple, configured(config).values())) == {("sg-ray",)}
    assert open_to_everyone(rules)  # what the file avoids

    text = re.sub(r"\\\n#\s*", "", (CLUSTER / "aws.yaml").read_text())
    allowed = re.findall(r"authorize-security-group-ingress .* --group-id sg-EXAMPLE (.*)", text)
    assert allowed == [
        "--protocol tcp --port 22 --cidr 203.0.113.7/32",
        "--protocol all --source-group sg-EXAMPLE",
    ]


def open_to_everyone(rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rules of a security group that admit every address."""
    return [
        rule
        for rule in rules
        if {"0.0.0.0/0", "::/0"}
        & {*(each["CidrIp"] for each in rule.get("IpRanges", ())), *(e["CidrIpv6"] for e in rule.get("Ipv6Ranges", ()))}
    ]


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_each_role_has_gpu_nodes(name: str) -> None:
    types = read(f"{name}.yaml")["available_node_types"]
    assert "GPU" not in types["head"]["resources"]
    assert {types[role]["resources"]["GPU"] for role in ("training", "rollout")} == {8, 4}
    assert sum(types[role]["max_workers"] for role in ("training", "rollout")) <= read(f"{name}.yaml")["max_workers"]


# KubeRay.

RESOURCES = {"type": "object", "additionalProperties": {"type": "string"}}
CONTAINER_RESOURCES = {
    "type": "object",
    "additionalProperties": False,
    "required": ["requests", "limits"],
    "properties": {"requests": RESOURCES, "limits": RESOURCES},
}
CONTAINER = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "image", "securityContext", "resources"],
    "properties": {
        "name": {"type": "string"},
        "image": {"type": "string"},
        "env": {"type": "array", "items": {"type": "object", "required": ["name", "value"]}},
        "securityContext": {
            "type": "object",
            "additionalProperties": False,
            "required": ["allowPrivilegeEscalation", "capabilities"],
            "properties": {
                "allowPrivilegeEscalation": {"const": False},
                "capabilities": {"const": {"drop": ["ALL"]}},
            },
        },
        "resources": CONTAINER_RESOURCES,
        "volumeMounts": {"type": "array", "items": {"type": "object", "required": ["name", "mountPath"]}},
    },
}
POD = {
    "type": "object",
    "additionalProperties": False,
    "required": ["metadata", "spec"],
    "properties": {
        "metadata": {"type": "object", "required": ["labels"]},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["securityContext", "containers"],
            "properties": {
                "restartPolicy": {"enum": ["Never", "OnFailure"]},
                "securityContext": {
                    "type": "object",
                    "required": ["runAsNonRoot", "runAsUser", "seccompProfile"],
                    "properties": {"runAsNonRoot": {"const": True}, "runAsUser": {"type": "integer", "minimum": 1}},
                },
                "containers": {"type": "array", "minItems": 1, "items": CONTAINER},
                "volumes": {"type": "array", "items": {"type": "object", "required": ["name"]}},
                "tolerations": {"type": "array"},
            },
        },
    },
}
START_PARAMETERS = {"type": "object", "additionalProperties": {"type": "string"}}  # numbers must be quoted
RAY_CLUSTER = {
    "type": "object",
    "additionalProperties": False,
    "required": ["rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"],
    "properties": {
        "rayVersion": {"type": "string"},
        "authOptions": {"const": {"mode": "token"}},
        "enableInTreeAutoscaling": {"type": "boolean"},
        "autoscalerOptions": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "version": {"enum": ["v1", "v2"]},
                "idleTimeoutSeconds": {"type": "integer", "minimum": 1},
                "resources": CONTAINER_RESOURCES,
            },
        },
        "headGroupSpec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["rayStartParams", "template"],
            "properties": {
                "serviceType": {"const": "ClusterIP"},
                "rayStartParams": START_PARAMETERS,
                "template": POD,
            },
        },
        "workerGroupSpecs": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"],
                "properties": {
                    "groupName": {"type": "string"},
                    "replicas": {"type": "integer", "minimum": 0},
                    "minReplicas": {"type": "integer", "minimum": 0},
                    "maxReplicas": {"type": "integer", "minimum": 1},
                    "rayStartParams": START_PARAMETERS,
                    "template": POD,
                },
            },
        },
    },
}
RAY_JOB = {
    "type": "object",
    "additionalProperties": False,
    "required": ["entrypoint", "rayClusterSpec", "submissionMode"],
    "properties": {
        "entrypoint": {"type": "string"},
        "runtimeEnvYAML": {"type": "string"},
        "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "SidecarMode"]},
        "shutdownAfterJobFinishes": {"type": "boolean"},
        "ttlSecondsAfterFinished": {"type": "integer", "minimum": 0},
        "backoffLimit": {"type": "integer", "minimum": 0},
        "submitterPodTemplate": POD,
        "rayClusterSpec": RAY_CLUSTER,
    },
}


def cluster_specs() -> list[dict[str, Any]]:
    return [read("raycluster.yaml")["spec"], read("rayjob.yaml")["spec"]["rayClusterSpec"]]


def test_manifests_match_the_kuberay_schema() -> None:
    cluster, job = read("raycluster.yaml"), read("rayjob.yaml")
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    jsonschema.validate(cluster["spec"], RAY_CLUSTER)
    jsonschema.validate(job["spec"], RAY_JOB)
    wrong = copy.deepcopy(cluster["spec"])
    wrong["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0  # a number instead of a string
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, RAY_CLUSTER)


@pytest.mark.parametrize("spec", cluster_specs(), ids=["raycluster", "rayjob"])
def test_pods_are_consistent(spec: dict[str, Any]) -> None:
    import ray

    assert spec["rayVersion"] == ray.__version__
    assert spec["enableInTreeAutoscaling"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        mounted = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounted == {"shared": "/shared", "shm": "/dev/shm"}
        assert {volume["name"] for volume in pod["volumes"]} == mounted.keys()
        limits = pod["containers"][0]["resources"]
        assert limits["requests"] == limits["limits"]
    assert {group["groupName"] for group in spec["workerGroupSpecs"]} == {"training", "rollout"}
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]) > 0


def test_rayjob_and_raycluster_have_the_same_spec() -> None:
    first, second = cluster_specs()
    assert first == second


def test_only_cluster_pods_and_the_operator_reach_the_ports() -> None:
    policy = read("network_policy.yaml")
    labels = policy["spec"]["podSelector"]["matchLabels"]
    pods, operator = policy["spec"]["ingress"]
    assert pods["from"] == [{"podSelector": {"matchLabels": labels}}]
    assert [port["port"] for port in operator["ports"]] == [8265]
    groups = [group for spec in cluster_specs() for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    templates = [group["template"] for group in groups] + [read("rayjob.yaml")["spec"]["submitterPodTemplate"]]
    assert all(template["metadata"]["labels"] == labels for template in templates)


def test_the_entrypoint_is_a_valid_config() -> None:
    spec = read("rayjob.yaml")["spec"]
    words = re.fullmatch(r"bash -c 'exec python -m rlgaf_ray.main (.*) \$RLGAF_OVERRIDES'", spec["entrypoint"])
    assert words
    overrides = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["RLGAF_OVERRIDES"].split()
    config = load_config(None, [*words[1].split(), *overrides])
    assert (config.run.folder, config.cluster.placement) == (Path("/shared/runs/job"), "separate")
    assert config.cluster.join_seconds > 0  # worker groups scale up from zero


# The image.


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", " ", (CLUSTER / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def test_dockerfile_instructions() -> None:
    steps = instructions()
    known = {"FROM", "ARG", "RUN", "WORKDIR", "COPY", "USER", "ENV", "CMD"}
    assert {name for name, _ in steps} <= known and steps[0][0] == "FROM"
    assert ("ARG", "EXTRAS=cpu") in steps
    users = [index for index, (name, _) in enumerate(steps) if name == "USER"]
    assert [steps[index][1] for index in users] == ["ray"] and users[0] > max(
        index for index, (name, _) in enumerate(steps) if name == "RUN"
    )
    assert any("--uid 1000" in text for name, text in steps if name == "RUN")  # the pods' runAsUser
    copied = [source for name, text in steps if name == "COPY" for source in text.split()[1:-1]]
    assert copied and all((REPOSITORY / source).exists() for source in copied)
    install = next(text for name, text in steps if name == "RUN" and "pip install" in text)
    assert "-c constraints.txt" in install and "rlgaf_ray.doctor --fix" in install
