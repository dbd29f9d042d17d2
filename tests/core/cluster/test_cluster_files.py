"""The cluster files and the scripts beside them, as far as that goes without a cluster.

Ray's schema leaves `provider` and `node_config` open, so what AWS would refuse at launch, and what
nobody would refuse but everybody would regret, is checked here. docs/cluster/loopback.sh really
brings cluster-onprem.yaml up.
"""

from __future__ import annotations

import copy
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from tests.support.calls import ROOT, until

FILES = ("cluster.yaml", "cluster-onprem.yaml")
SCRIPTS = sorted((ROOT / "docs" / "cluster").glob("*.sh"))
COMMANDS = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands",
)  # fmt: skip
START = ("head_start_ray_commands", "worker_start_ray_commands")


def load(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text())


def prepared(config: dict) -> dict:
    """Return `config` as `ray up` would use it; raises what `ray up` would refuse."""
    util = pytest.importorskip("ray.autoscaler._private.util")
    config = util.prepare_config(copy.deepcopy(config))
    util.validate_config(config)
    return config


@pytest.mark.parametrize("name", FILES)
def test_ray_accepts_the_file(name):
    config, ours = prepared(load(name)), load(name)
    assert config["cluster_name"].startswith("labtune")
    # What Ray adds by itself must not bring back what was left out: its defaults hold `ray stop`,
    # a dashboard open to the world, and their own set-up.
    assert all(config[kind] == ours[kind] for kind in START)
    assert not any("ray-wheels" in c for c in config["setup_commands"])


@pytest.mark.parametrize(
    ("name", "key", "value", "told"),
    [
        ("cluster.yaml", "max_worker", 3, "max_worker"),
        ("cluster.yaml", "idle_timeout_minutes", "ten", "ten"),
        ("cluster.yaml", "head_node_type", "haed", "head_node_type"),
        ("cluster-onprem.yaml", "head_start_ray_command", [], "head_start_ray_command"),
    ],
)
def test_the_schema_test_would_notice(name, key, value, told):
    with pytest.raises(Exception, match=told):
        prepared({**load(name), key: value})


def test_commands_and_scripts_are_bash_and_there():
    commands = [c for name in FILES for kind in COMMANDS for c in load(name).get(kind, [])]
    for text in [*commands, *(script.read_text() for script in SCRIPTS)]:
        done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
        assert done.returncode == 0, f"{text}\n{done.stderr}"
    assert all(os.access(script, os.X_OK) for script in SCRIPTS)
    assert {"aws-iam.sh", "loopback.sh", "ray-node.sh", "slurm.sh"} == {p.name for p in SCRIPTS}
    for name in FILES:
        for command in (c for kind in START for c in load(name)[kind]):
            (script,) = re.findall(r"bash (\S+\.sh) start ", command)
            assert (ROOT / script) in SCRIPTS


@pytest.mark.parametrize("name", FILES)
def test_every_node_starts_with_the_token_and_closed(name):
    config = load(name)
    wanted = {"RAY_AUTH_MODE=token", "RAY_USAGE_STATS_ENABLED=0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV=0"}
    for kind in START:
        for command in config[kind]:
            closed = {"--dashboard-host=127.0.0.1"} if kind.startswith("head") else set()
            assert wanted | closed <= set(shlex.split(re.sub(r"\$\(|\)", "", command))), kind
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


@pytest.mark.parametrize("path", [*(ROOT / name for name in FILES), *SCRIPTS], ids=lambda p: p.name)
def test_others_processes_ports_and_secrets_are_left_alone(path):
    text = path.read_text()
    assert not re.search(r"AKIA|ASIA[A-Z0-9]{12}|PRIVATE KEY|(?i:password|secret)\w*\s*[:=]", text)
    assert not re.search(r"\b[0-9a-f]{32,}\b|ssh_private_key", text)
    text = re.sub(r"(?m)(^|\s)#.*$", "", text)
    assert not re.search(r"\bray stop\b|\bray down\b|\bpkill\b|\bkillall\b", text)
    assert not re.search(r"0\.0\.0\.0|::/0|RAY_AUTH_MODE=disabled", text)


@pytest.mark.parametrize("name", FILES)
def test_the_whole_checkout_is_mounted(name):
    """Otherwise nodes run other code than the driver, or results name a commit as changed."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if not (tracked := listed.stdout.splitlines()):
        pytest.skip("no git here")
    mounts = {k: v for k, v in load(name)["file_mounts"].items() if k.startswith("~/labtune/")}
    assert all(remote == f"~/labtune/{local}" for remote, local in mounts.items())
    missing = {path.split("/")[0] for path in tracked} - set(mounts.values())
    assert not missing, f"add to file_mounts of {name}: {sorted(missing)}"
    gone = {local for local in mounts.values() if not (ROOT / local).exists()} - {".git"}
    assert not gone, f"remove from file_mounts of {name}: {sorted(gone)}"


@pytest.mark.parametrize("name", FILES)
def test_nodes_make_the_environment_of_the_checkout_and_get_no_results(name):
    config = load(name)
    assert any("make env" in command for command in config["setup_commands"])
    assert all(c.startswith("cd ~/labtune && ") for kind in START for c in config[kind])
    assert not {".", "./", ".venv", "results", "data"} & set(config["file_mounts"].values())
    left_out = set(config["rsync_exclude"])
    assert "__pycache__" in left_out
    # A folder is copied as a tree of its own: "/data" would leave out core/data.
    assert not any(word.startswith("/") for word in left_out), left_out
    held = {part for path in (ROOT / "core").rglob("*.py") for part in path.parts}
    assert not left_out & (held - {"__pycache__"})


def test_aws_node_types():
    config = load("cluster.yaml")
    head, gpu = (config["available_node_types"][name] for name in ("head", "gpu"))
    assert config["head_node_type"] == "head" and head["resources"] == {"CPU": 0}
    assert "--num-cpus=0" in config["head_start_ray_commands"][-1]
    assert gpu["min_workers"] == 0 < gpu["max_workers"] == config["max_workers"]
    assert gpu["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert "InstanceMarketOptions" not in head["node_config"]  # a study ends with its head
    assert config["provider"]["cache_stopped_nodes"] is False
    assert 0 < config["idle_timeout_minutes"] <= 30
    for node in (head["node_config"], gpu["node_config"]):
        assert node["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] >= 100  # torch, CUDA, Ray, data
        # An id would be of one region and grow old; Ray's own default has Python 3.6.
        assert re.fullmatch(
            r"resolve:ssm:/aws/service/deeplearning/[\w/.-]+/ami-id|ami-[0-9a-f]+", node["ImageId"]
        )
        assert node["MetadataOptions"]["HttpTokens"] == "required"
    names = [node["node_config"]["IamInstanceProfile"]["Name"] for node in (head, gpu)]
    assert names == ["labtune-head", "labtune-worker"]


def unknown_to_aws(config: dict) -> str:
    """Return what EC2's RunInstances would not take of a node_config; Ray adds the counts."""
    import botocore.session
    from botocore.validate import ParamValidator

    model = botocore.session.get_session().get_service_model("ec2")
    shape = model.operation_model("RunInstances").input_shape
    request = config | {"MinCount": 1, "MaxCount": 1}
    return ParamValidator().validate(request, shape).generate_report()


def test_aws_knows_every_key():
    nodes = load("cluster.yaml")["available_node_types"]
    assert [unknown_to_aws(node["node_config"]) for node in nodes.values()] == ["", ""]
    good = nodes["gpu"]["node_config"]
    assert "InstanceTyp" in unknown_to_aws({**good, "InstanceTyp": "g5.xlarge"})
    bad = [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": "1"}}]
    assert "VolumeSize" in unknown_to_aws({**good, "BlockDeviceMappings": bad})


def test_aws_opens_only_ssh():
    """And so does what this Ray's provider adds to a group that it makes."""
    provider = load("cluster.yaml")["provider"]
    known = {"type", "region", "availability_zone", "cache_stopped_nodes", "security_group"}
    assert set(provider) <= known
    group = provider["security_group"]
    assert group["GroupName"]
    for rule in group.get("IpPermissions", []):
        assert (rule["FromPort"], rule["ToPort"], rule["IpProtocol"]) == (22, 22, "tcp")
    from ray.autoscaler._private.aws import config as aws

    rules = aws._create_default_inbound_rules({"sg-1"})
    outside = [rule for rule in rules if rule.get("IpRanges")]
    assert [(r["FromPort"], r["ToPort"]) for r in outside] == [(22, 22)]
    assert all(r["UserIdGroupPairs"] == [{"GroupId": "sg-1"}] for r in rules if r not in outside)


def test_onprem_nodes():
    config = load("cluster-onprem.yaml")
    servers = [config["provider"]["head_ip"], *config["provider"]["worker_ips"]]
    assert len(servers) == len(set(servers)) == 2
    # RFC 5737: addresses that are nobody's, to be filled in.
    assert all(address.startswith("192.0.2.") for address in servers)
    assert config["min_workers"] == config["max_workers"] == 1
    node = prepared(config)["available_node_types"]["local.cluster.node"]
    assert node["min_workers"] == node["max_workers"] == len(config["provider"]["worker_ips"])
    for kind in START:  # version 2 would start one worker too few
        assert all("RAY_enable_autoscaler_v2=0 " in command for command in config[kind])
    port = int(re.search(r"--port=(\d+)", config["head_start_ray_commands"][-1])[1])
    assert f":{port}" in config["worker_start_ray_commands"][-1]
    assert not 10002 <= port <= 19999


@pytest.fixture
def slurm(tmp_path):
    """Return a function that runs slurm.sh in an allocation of two nodes that is all pretence."""
    commands = {
        "bin/scontrol": 'if [ "$1" = show ]; then echo 127.0.0.1; echo other;'
        ' else echo "$*" >> scontrol.log; fi',
        # Steps run here; the options of srun end where `bash` begins.
        "bin/srun": 'while [ "$1" != bash ]; do echo -n "$1 " >> srun.log; shift; done;'
        ' echo "${@:4}" >> srun.log; exec "$@"',
        ".venv/bin/ray": '[ "$1" = start ] || exit 0\n'
        'case "$*" in *--head*) all="$*"; port="${all##*--port=}"; exec '
        + shlex.quote(sys.executable)
        + " -c '"
        'import socket, sys, time; s = socket.create_server(("127.0.0.1", int(sys.argv[1])));'
        ' time.sleep(60)\' "${port%% *}" ;; esac; exec sleep 60',
        ".venv/bin/python": 'echo "$*" >> study.log\n'
        '[ "$CODE" != 75 ] || { sleep 30 & trap "kill $!; exit 75" TERM; touch ready; wait; };'
        ' exit "$CODE"',
    }
    for path, text in commands.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / path).chmod(0o755)

    def run(*arguments: str, code: int) -> tuple[int, str]:
        environment = {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "HOME": str(tmp_path),
            "CODE": str(code), "LABTUNE_SETTLE": "0", "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_CPUS_PER_TASK": "4",
        }  # fmt: skip
        command = ["bash", ROOT / "docs" / "cluster" / "slurm.sh", "studies/norms.py", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes)
        if code == 75:  # Slurm's signal before the limit, to the script alone
            until((tmp_path / "ready").exists, 20)
            process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=40)
        return process.returncode, output

    return run


def test_slurm_job_requeues_itself_when_time_is_up(slurm, tmp_path):
    code, output = slurm("--results-dir", "out dir", code=75)
    assert code == 75, output
    assert (tmp_path / "scontrol.log").read_text().split() == ["requeue", str(os.getpid())]
    assert "back into the queue" in output


def test_slurm_job_that_is_done_is_done(slurm, tmp_path):
    code, output = slurm("--seeds", "2", code=1)
    assert code == 1, output
    assert not (tmp_path / "scontrol.log").exists()
    port, name = 20000 + os.getpid() % 10000, f"slurm-{os.getpid()}"
    (command,) = (tmp_path / "study.log").read_text().splitlines()
    assert command == f"studies/norms.py --seeds 2 --name {name} --address 127.0.0.1:{port}"
    head, workers = sorted((tmp_path / "srun.log").read_text().splitlines(), key=len, reverse=True)
    assert "--nodes=1" in head and "--head" in head and "--include-dashboard=false" in head
    assert "--exclude=127.0.0.1" in workers and f"--address=127.0.0.1:{port}" in workers
    assert "--num-cpus=4" in head and "--num-cpus=4" in workers
    assert not Path(f"/tmp/labtune-{os.getpid()}").exists()


@pytest.mark.parametrize("named", [False, True])
def test_slurm_job_goes_on_where_it_was_and_refuses_what_it_gives_itself(slurm, tmp_path, named):
    folder = tmp_path / "out dir" / "norms" / ("mine" if named else f"slurm-{os.getpid()}")
    folder.mkdir(parents=True)
    (folder / "study.json").touch()
    options = ["--results-dir=out dir", *(["--name=mine"] if named else [])]
    code, output = slurm(*options, code=0)
    assert code == 0, output
    assert " --resume --address " in (tmp_path / "study.log").read_text()
    code, output = slurm("--resume", code=0)
    assert code == 2 and "leave them out" in output


@pytest.fixture
def checkout(tmp_path):
    """Return a checkout with nothing but ray-node.sh and a `ray` that starts, or does not."""
    script = tmp_path / "docs" / "cluster" / "ray-node.sh"
    script.parent.mkdir(parents=True)
    script.write_text((ROOT / "docs" / "cluster" / "ray-node.sh").read_text())
    ray = tmp_path / ".venv" / "bin" / "ray"
    ray.parent.mkdir(parents=True)
    # `exec -a` so that the command line reads as that of the real one.
    ray.write_text(
        '#!/bin/bash\ncase "$*" in *--broken*) echo "no such address"; exit 1 ;; esac\n'
        'echo "Ray runtime started."; exec -a "ray start --block" sleep 60\n'
    )
    ray.chmod(0o755)

    def run(*arguments: str) -> subprocess.CompletedProcess:
        options = {"env": os.environ | {"HOME": str(tmp_path)}, "timeout": 20}
        command = ["bash", str(script), *arguments]
        return subprocess.run(command, capture_output=True, text=True, **options)

    yield run
    run("stop")


def node_of(tmp_path: Path) -> psutil.Process:
    (path,) = (tmp_path / ".labtune-ray").glob("*/pid")
    return psutil.Process(int(path.read_text()))


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_a_node_is_started_once_and_stopped_and_no_other_process(checkout, tmp_path):
    assert checkout("start", "--head").returncode == 0
    first = node_of(tmp_path)
    assert alive(first)
    assert checkout("start", "--head").returncode == 0  # `ray up` again: ours is replaced
    second = node_of(tmp_path)
    assert second != first and alive(second) and not alive(first)
    assert checkout("stop").returncode == 0
    assert not alive(second)
    assert checkout("stop").returncode == 0  # nothing to stop
    other = subprocess.Popen(["sleep", "60"])
    (state,) = (tmp_path / ".labtune-ray").iterdir()
    (state / "pid").write_text(f"{other.pid}\n")  # the number is someone else's by now
    checkout("stop")
    assert other.poll() is None
    other.kill()
    other.wait()


def test_a_node_that_does_not_start_says_why(checkout):
    done = checkout("start", "--broken")
    assert done.returncode == 1
    assert "no such address" in done.stderr and "Ray did not start" in done.stderr
