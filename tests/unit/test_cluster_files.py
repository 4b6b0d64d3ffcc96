"""The files under `cluster/`: valid for those that read them, and what they say fits together."""

import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from rayjobs.command_line import parse
from rayjobs.errors import JobError
from rayjobs.options import JobOptions
from rayjobs.placement import selector
from rayjobs.simulation.calibration import calibrate
from rayjobs.validation import check_batches, check_method
from sharpening.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
KUBERAY = sorted((CLUSTER / "kuberay").glob("*.yaml"))
RAY_UP = sorted((CLUSTER / "ray_up").glob("*.yaml"))
TEXTS = [path for path in sorted(CLUSTER.rglob("*")) if path.is_file() and path.suffix not in (".json", ".pyc")]
CRDS = json.loads((ROOT / "tests" / "data" / "kuberay_crds.json").read_text())
IMAGE = "trajectory-sharpening:0.1.0"
JOBS = {"rlhf.py": ("rlhf",), "sft.py": ("sft",), "finetune.py": tuple(METHODS)}


def name_of(path: Path) -> str:
    return path.name


def load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def errors(document: dict[str, Any]) -> list[str]:
    """What KubeRay's definition of its kind has against a document; fields that it does not name among them."""
    schema = CRDS["kinds"][document["kind"]] | {"$defs": CRDS["$defs"]}
    found = Draft202012Validator(schema).iter_errors(document)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found]


def part_of_schema(*path: str) -> dict[str, Any]:
    """A part of RayCluster's schema, through references; list items need no name."""
    part = CRDS["kinds"]["RayCluster"]
    for name in path:
        while "$ref" in part or part.get("type") == "array":
            part = CRDS["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part["items"]
        part = part["properties"][name]
    return part | {"$defs": CRDS["$defs"]}


def cluster_of(document: dict[str, Any]) -> dict[str, Any] | None:
    """The Ray cluster that a document describes, if it does."""
    specs = {"RayCluster": None, "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
    if document["kind"] not in specs:
        return None
    key = specs[document["kind"]]
    return document["spec"] if key is None else document["spec"][key]


CLUSTERS = [path for path in KUBERAY if cluster_of(load(path)) is not None]


def groups(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [spec["headGroupSpec"], *spec.get("workerGroupSpecs", [])]


def quantity(text: str) -> float:
    """Bytes or CPUs of a Kubernetes quantity."""
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "m": 1e-3, "": 1}
    number, unit = re.fullmatch(r"([\d.]+)([A-Za-z]*)", str(text)).groups()  # type: ignore[union-attr]
    return float(number) * units[unit]


def gpus(group: dict[str, Any]) -> int:
    (container,) = group["template"]["spec"]["containers"]
    return int(container["resources"]["limits"].get("nvidia.com/gpu", 0))


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Our jobs that a text names, with their flags: in YAML, in comments, in Markdown, over several lines."""
    lines = [re.sub(r"^\s*#\s?", "", line) for line in text.splitlines()]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    for match in re.finditer(r"(?:python\S* \S*rayjobs/(\w+\.py)|sbatch \S+\.sbatch)(.*)", joined):
        if match[1] in JOBS or match[1] is None:
            words = shlex.split(match[2].replace("$PWD", "/project"))
            if words and words[0].startswith("--") and words != ["--help"]:
                yield match[1] or "rlhf.py", words


def options_of(job: str, words: list[str]) -> JobOptions:
    """The options as our own command line reads them, with the checks that need no cluster."""
    options = parse(words, job, JOBS[job])
    check_method(options)
    check_batches(options)
    return options


# -- KubeRay -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CLUSTERS, ids=name_of)
def test_kuberay_knows_every_field(path: Path) -> None:
    document = load(path)
    assert document["apiVersion"] == "ray.io/v1"
    assert errors(document) == []


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (("spec", "rayClusterSpec", "authOption"), {"mode": "token"}, "'authOption' was unexpected"),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "tokens", "'tokens' is not one of"),
        (("spec", "submissionMode"), 1, "1 is not of type 'string'"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "replicas"), "two", "'two' is not of type 'integer'"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "toleration"), [], "unexpected"),
        (
            ("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0, "image"),
            None,
            "None is not",
        ),
    ],
)
def test_the_check_of_fields_is_one(place: tuple[Any, ...], value: Any, says: str) -> None:
    document = load(CLUSTER / "kuberay" / "rayjob-groups.yaml")
    assert errors(document) == []
    part = document
    for step in place[:-1]:
        part = part[step]
    part[place[-1]] = value
    assert any(says in error for error in errors(document))


def test_storage_and_network_policy_are_valid() -> None:
    claim, policy = (load(CLUSTER / "kuberay" / name) for name in ("storage.yaml", "network-policy.yaml"))
    assert (claim["apiVersion"], claim["kind"]) == ("v1", "PersistentVolumeClaim")
    assert (policy["apiVersion"], policy["kind"]) == ("networking.k8s.io/v1", "NetworkPolicy")
    # Pods may carry claims, and KubeRay makes policies: its definitions hold the schemas of both.
    volumes = ("spec", "headGroupSpec", "template", "spec", "volumes", "ephemeral", "volumeClaimTemplate", "spec")
    rules = Draft202012Validator(part_of_schema("spec", "networkPolicy", "head", "ingressRules"))
    assert list(Draft202012Validator(part_of_schema(*volumes)).iter_errors(claim["spec"])) == []
    assert list(rules.iter_errors(policy["spec"]["ingress"])) == []
    assert list(rules.iter_errors([{"form": []}])) != []
    assert set(policy["spec"]) == {"podSelector", "policyTypes", "ingress"}
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


@pytest.mark.parametrize("path", CLUSTERS, ids=name_of)
def test_clusters_are_guarded(path: Path) -> None:
    spec = cluster_of(load(path))
    assert spec is not None
    lock = (ROOT / "requirements.lock").read_text()
    assert f"ray=={spec['rayVersion']}\n" in lock  # the operator asks for it where there is a token
    assert spec["authOptions"] == {"mode": "token"}
    covered = load(CLUSTER / "kuberay" / "network-policy.yaml")["spec"]["podSelector"]["matchLabels"]
    for group in groups(spec):
        template = group["template"]
        assert covered.items() <= template["metadata"]["labels"].items()
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        if not spec.get("enableInTreeAutoscaling") or group is not spec["headGroupSpec"]:
            assert pod["automountServiceAccountToken"] is False
        for variable in container.get("env", []):
            if re.search("token|key|secret|password", variable["name"], re.I):
                assert set(variable) == {"name", "valueFrom"}
                assert "secretKeyRef" in variable["valueFrom"]


@pytest.mark.parametrize("path", CLUSTERS, ids=name_of)
def test_pods_fit_together(path: Path) -> None:
    spec = cluster_of(load(path))
    assert spec is not None
    claim = load(CLUSTER / "kuberay" / "storage.yaml")["metadata"]["name"]
    for group in groups(spec):
        assert not {"labels", "num-gpus", "resources"} & set(group["rayStartParams"])  # the operator refuses or derives
        if "replicas" in group:
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["image"] == IMAGE
        limits = container["resources"]["limits"]
        assert container["resources"]["requests"] == limits
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        store, shared = (
            int(group["rayStartParams"]["object-store-memory"]),
            quantity(volumes["shm"]["emptyDir"]["sizeLimit"]),
        )
        assert store < shared < quantity(limits["memory"])
        if "runs" in volumes:
            assert volumes["runs"]["persistentVolumeClaim"]["claimName"] == claim
        tolerated = {toleration["key"] for toleration in pod.get("tolerations", [])}
        assert ("nvidia.com/gpu" in tolerated) == (gpus(group) > 0)


@pytest.mark.parametrize("path", [path for path in CLUSTERS if "job" in path.name], ids=name_of)
def test_jobs_ask_for_what_their_cluster_has(path: Path) -> None:
    document = load(path)
    spec = document["spec"]
    assert spec["submissionMode"] == "K8sJobMode"
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["backoffLimit"] == 0  # a second start would find the run folder taken
    (program, words) = next(iter(commands(spec["entrypoint"])))
    assert spec["entrypoint"].startswith("python /opt/sharpening/rayjobs/")
    options = options_of(program, words)
    head = spec["rayClusterSpec"]["headGroupSpec"]
    mounts = head["template"]["spec"]["containers"][0]["volumeMounts"]
    assert str(options.output_dir).startswith("/runs/")
    assert "/runs" in {mount["mountPath"] for mount in mounts}
    workers = spec["rayClusterSpec"].get("workerGroupSpecs", [])
    if not workers:
        assert gpus(head) == 1
        return
    assert head["resources"]["CPU"] == "0"

    def labelled(label: str | None) -> int:
        wanted = selector(label)
        assert wanted is not None
        return sum(group["replicas"] * gpus(group) for group in workers if wanted.items() <= group["labels"].items())

    assert options.num_rollout_actors + options.reward_replicas == labelled(options.rollout_nodes) == 16
    assert options.num_learners == labelled(options.learner_nodes) == 8


def test_a_job_and_a_cluster_of_groups_are_the_same() -> None:
    for kind in ("one-gpu", "groups"):
        job, stays = (load(CLUSTER / "kuberay" / f"{what}-{kind}.yaml") for what in ("rayjob", "raycluster"))
        assert cluster_of(job) == cluster_of(stays)


def test_rewards_are_served_as_serve_and_we_read_it() -> None:
    from ray.serve.schema import ServeDeploySchema

    from reward_servers.gateway_options import GatewayOptions
    from reward_servers.options import RewardAppOptions

    document = load(CLUSTER / "kuberay" / "rayservice-rewards.yaml")
    config = ServeDeploySchema.model_validate(yaml.safe_load(document["spec"]["serveConfigV2"]))
    assert config.http_options.host == "0.0.0.0"  # the pod's address; the policy and two tokens guard it
    applications = {application.name: application for application in config.applications}
    gateway = applications.pop("rewards")
    assert gateway.args["require_token"] is True
    assert set(gateway.args["applications"].values()) == set(applications)
    assert GatewayOptions.model_validate(gateway.args).reward_names == ["clip", "verifier"]
    shipped = {a["name"]: a for a in load(ROOT / "reward_servers" / "serve.yaml")["applications"]}
    assert {*applications, "rewards"} == set(shipped)
    for name, application in (applications | {"rewards": gateway}).items():
        assert application.import_path == shipped[name]["import_path"]
        assert application.route_prefix == shipped[name]["route_prefix"]
    for application in applications.values():
        served = RewardAppOptions.model_validate(application.args)
        assert served.max_replicas is not None  # as many as the load asks for
        placed = served.model_copy(update={"node_labels": {"role": "rollout"}})
        options = placed.deployment_options()["ray_actor_options"]
        assert options["label_selector"] == {"role": "rollout"}
        assert "label_selector" not in served.deployment_options()["ray_actor_options"]


# -- ray up ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RAY_UP, ids=name_of)
def test_rays_launcher_takes_the_files(path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(load(path))
    validate_config(prepared)
    wrong = copy.deepcopy(prepared) | {"max_worker": 3}
    with pytest.raises(Exception, match="max_worker"):
        validate_config(wrong)
    start = " ".join(prepared["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in start
    assert "0.0.0.0" not in path.read_text()
    assert "export RAY_AUTH_MODE=token" in " ".join(prepared["initialization_commands"])
    local = {remote: Path(place) for remote, place in prepared["file_mounts"].items()}
    token = [remote for remote, place in local.items() if place.name == "auth_token"]
    assert len(token) == 1
    for remote, place in local.items():
        if remote not in token:
            assert (ROOT / place).exists()
            assert remote.endswith(f"/sharpening/{place}")


@pytest.mark.parametrize("path", [path for path in RAY_UP if path.stem != "local"], ids=name_of)
def test_the_launchers_command_asks_for_what_the_nodes_have(path: Path) -> None:
    document = load(path)
    ((program, words),) = commands(path.read_text())
    options = options_of(program, words)
    types = document["available_node_types"]

    def labelled(label: str | None) -> int:
        wanted = selector(label)
        assert wanted is not None
        return sum(t["min_workers"] * t["resources"]["GPU"] for t in types.values() if wanted == t.get("labels"))

    assert options.num_rollout_actors + options.reward_replicas == labelled(options.rollout_nodes) == 16
    assert options.num_learners == labelled(options.learner_nodes) == 8
    assert types[document["head_node_type"]]["resources"] == {"CPU": 0}


# -- Slurm -------------------------------------------------------------------------------------------------------------

STAND_INS = {
    "scontrol": '[[ "$1 $2" == "show hostnames" ]] && tr , "\\n" <<< "$3"',
    "srun": """
while [[ $1 == --* ]]; do
    case $1 in --nodelist) list=$2; shift 2 ;; --nodes | --ntasks | --ntasks-per-node) shift 2 ;; *) shift ;; esac
done
for name in ${list//,/ }; do NODE=$name "$@" & done
trap 'kill $(jobs -p) 2> /dev/null' TERM
wait
""",
    "ray": """
[[ $1 == health-check ]] && exit 0
echo "$NODE $RAY_AUTH_MODE $(stat -c %a "$RAY_AUTH_TOKEN_PATH") $(wc -c < "$RAY_AUTH_TOKEN_PATH") $*" >> "$LOG/ray"
exec sleep 300
""",
    "python": """
[[ $1 == -c ]] && exec "$REAL_PYTHON" "$@"
echo "$*" > "$LOG/submitted"
trap 'echo stopped >> "$LOG/submitted"; exit 3' TERM
until (($(cat "$LOG/ray" 2> /dev/null | wc -l) == EXPECTED)); do sleep 0.1; done
[[ -z $STOPS ]] || { kill -TERM $PPID; while :; do sleep 0.1; done; }
exit 7
""",
    "ip": 'echo "2: ib0    inet 192.0.2.7/24 brd 192.0.2.255 scope global ib0"',
}


def start_slurm_job(tmp_path: Path, nodes: str, learner_nodes: int, stops: bool = False) -> tuple[int, list[str], str]:
    """Run the Slurm script with stand-ins for Slurm and Ray: its exit code, how Ray was started, the submission."""
    project, tools, log = tmp_path / "project", tmp_path / "tools", tmp_path / "log"
    for folder in (project / ".venv" / "bin", tools, log):
        folder.mkdir(parents=True)
    shutil.copytree(CLUSTER / "slurm", project / "cluster" / "slurm")
    (project / ".venv" / "bin" / "activate").write_text(f'export PATH="{tools}:$PATH"\n')
    for name, body in STAND_INS.items():
        (tools / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tools / name).chmod(0o755)
    environment = {
        "PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "12345", "SLURM_JOB_NODELIST": nodes,
        "SLURM_SUBMIT_DIR": str(project), "SLURM_CPUS_PER_TASK": "6", "SLURM_GPUS_ON_NODE": "2",
        "LEARNER_NODES": str(learner_nodes), "RAY_INTERFACE": "ib0", "LOG": str(log), "REAL_PYTHON": sys.executable,
        "EXPECTED": str(nodes.count(",") + 1), "STOPS": "yes" if stops else "",
    }  # fmt: skip
    command = ["bash", str(CLUSTER / "slurm" / "sharpening.sbatch"), "--branches", "5"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert list(project.glob(".sharpening-*")) == [], "the token was left behind"
    started = (log / "ray").read_text().splitlines() if (log / "ray").exists() else []
    submitted = (log / "submitted").read_text() if (log / "submitted").exists() else done.stderr
    return done.returncode, sorted(started), submitted


def test_slurm_starts_a_head_and_workers_and_ends_them(tmp_path: Path) -> None:
    code, started, submitted = start_slurm_job(tmp_path, "n1,n2,n3,n4", learner_nodes=2)
    assert code == 7  # the run's own
    assert [line.split()[:4] for line in started] == [[name, "token", "600", "65"] for name in ("n1", "n2", "n3", "n4")]
    own = "--node-ip-address 192.0.2.7"
    assert all(own in line and "--num-cpus 6 --num-gpus 2" in line for line in started)
    assert "--head --port 22345 --dashboard-host 127.0.0.1 --dashboard-port 32345" in started[0]
    assert all("--address 192.0.2.7:22345" in line for line in started[1:])
    labels = [re.search(r"--labels (\S+)", line)[1] for line in started]  # type: ignore[index]
    assert labels == ["role=learner", "role=learner", "role=rollout", "role=rollout"]
    assert "--nodes 4" in submitted
    assert submitted.rstrip().endswith("rayjobs/rlhf.py --branches 5")
    assert subprocess.run(["pgrep", "-f", f"{tmp_path}/tools/ray"], capture_output=True, check=False).returncode == 1


def test_slurms_warning_reaches_the_run(tmp_path: Path) -> None:
    code, started, submitted = start_slurm_job(tmp_path, "n1,n2", learner_nodes=0, stops=True)
    assert code == 3
    assert submitted.endswith("stopped\n")
    assert all("--labels  " in line or line.endswith("--labels ") or "--labels --" in line for line in started)


def test_too_many_learner_nodes_are_refused(tmp_path: Path) -> None:
    code, started, said = start_slurm_job(tmp_path, "n1,n2", learner_nodes=2)
    assert (code, started) == (2, [])
    assert "LEARNER_NODES=2 leaves no node for rollouts; this job has 2" in said


# -- the image ---------------------------------------------------------------------------------------------------------


def test_the_image_holds_what_a_job_needs_and_no_root(tmp_path: Path) -> None:
    text = (CLUSTER / "image" / "Containerfile").read_text()
    instructions = [line.split() for line in text.splitlines() if re.match("[A-Z]+ ", line)]
    assert [words[0] for words in instructions][:2] == ["ARG", "FROM"]
    assert instructions[1] == ["FROM", "${BASE_IMAGE}"]
    assert [words[1] for words in instructions if words[0] == "USER"] == ["${UID}:${GID}"]
    assert "ARG UID=1000" in text
    assert "://" not in text
    copied = [word for words in instructions if words[0] == "COPY" for word in words[1:-1] if not word.startswith("--")]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == set(copied)
    for name in copied:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tmp_path)
    program = "import sys; from rayjobs.validation import validate; from rayjobs.command_line import parse; "
    program += "print(validate(parse(sys.argv[1:])).deepspeed_config)"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", program, "--output_dir", str(tmp_path / "run")], cwd=tmp_path, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "cluster/deepspeed_cpu.json"


# -- all of them -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*TEXTS, ROOT / "docs" / "cluster.md"], ids=name_of)
def test_commands_name_options_that_there_are(path: Path) -> None:
    for program, words in commands(path.read_text()):
        try:
            options_of(program, words)
        except JobError as error:
            pytest.fail(f"{path.name}: {shlex.join(words)}: {error}")


def test_commands_are_found_and_wrong_ones_refused() -> None:
    text = "#     python rayjobs/rlhf.py --branches 3 \\\n#         --seed 1\n#\n"
    assert list(commands(text)) == [("rlhf.py", ["--branches", "3", "--seed", "1"])]
    with pytest.raises(JobError, match="did you mean --branches"):
        options_of("rlhf.py", ["--branchs", "3"])
    assert sum(len(list(commands(path.read_text()))) for path in TEXTS) >= 5


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_no_secret_and_no_host_is_in_the_files(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"AKIA|ghp_|hf_[A-Za-z]{20}|BEGIN [A-Z ]*PRIVATE KEY|auth_token: [0-9a-f]{16}", text)
    addresses = re.findall(r"\w+://[^\s\"']*", text)
    assert [address for address in addresses if not address.startswith("http://127.0.0.1:")] == []


@pytest.mark.parametrize("path", [path for path in TEXTS if path.suffix in (".sh", ".sbatch")], ids=name_of)
def test_shell_scripts_parse(path: Path) -> None:
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=True).stderr == ""


@pytest.mark.parametrize(("name", "trained"), [("sdxl", 2_567_463_684), ("sdxl_lora", 92_897_280)])
def test_stated_stage_times_are_what_their_arithmetic_gives(name: str, trained: int) -> None:
    stages, layout, notes = calibrate(str(CLUSTER / "capacity" / f"{name}.yaml"))
    peak, evaluation, decoding = 989.4, 6.761, 10.470  # TFLOP/s, TFLOP
    evaluate, decode = evaluation / (0.4 * peak), decoding / (0.3 * peak)
    prompts, branches, steps, timesteps = layout.rollout_batch_size, 3, 30, 4
    assert stages.images_per_prompt == timesteps * branches
    drawn = prompts * branches * (steps + timesteps)
    assert stages.before_reward == pytest.approx(drawn * evaluate + prompts * 12 * decode, rel=1e-3)
    assert stages.after_reward == pytest.approx(prompts * timesteps * 2 * evaluate, rel=1e-3)
    groups = layout.prompts_per_update * timesteps / layout.learners
    passes, step = (4, 0.15) if name == "sdxl" else (3, 0.0)
    assert stages.learn == pytest.approx(groups * 2 * passes * evaluate + step, rel=2e-3)
    assert stages.weights_bytes == pytest.approx(4 * trained, rel=1e-3)
    assert stages.gradient_bytes == pytest.approx(2 * trained, rel=1e-3)
    assert stages.publish == pytest.approx(4 * trained * (1 / 6e9 + 1 / 4e9), rel=0.01)
    assert stages.finish == pytest.approx(4 * trained * 2 / 6e9, rel=0.01)
    assert stages.load == pytest.approx(4 * trained / 6e9, rel=0.01)
    states = 2 * 4 * 128 * 128 * 4  # latents of a state and of its target, float32
    embeddings = prompts * 77 * 2048 * 4
    assert stages.experience_bytes == pytest.approx(prompts * timesteps * 2 * states + embeddings, rel=0.01)
    assert notes[0].startswith("stated, not measured: SDXL")
