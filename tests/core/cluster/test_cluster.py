"""Several nodes on this machine, with pretended cards: slots, losses, refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
import pytest

from tests.conftest import ROOT, S3_KEYS, s3_client, s3_server

pytestmark = [pytest.mark.ray, pytest.mark.slow]
METRICS = ["trial", "kind", "seed", "epoch", "val_accuracy", "train_loss"]
SETTINGS = ["--seeds", "6", "--set", "epochs=8", "pause=1"]


@pytest.fixture(scope="module")
def token(tmp_path_factory) -> dict[str, str]:
    """Turn Ray's authentication on, with a token of our own."""
    path = tmp_path_factory.mktemp("token") / "auth_token"
    path.write_text("0123456789abcdef" * 4)
    path.chmod(0o600)
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}


@pytest.fixture(scope="module")
def cluster(token, tmp_path_factory):
    """Start nodes with 2 x 11 GB, 1 x 24 GB and no cards; they share TOY_MARKER's folder."""
    marks = tmp_path_factory.mktemp("marks")
    environment = (
        token
        | S3_KEYS
        | {"PYTHONPATH": str(ROOT), "TOY_MARKER": str(marks / "gather"), "TOY_GATHER": "21"}
    )
    script = [sys.executable, "-c", SERVE, "2x11GB", "1x24GB", "0"]
    process = subprocess.Popen(
        script,
        cwd=ROOT,
        env=os.environ | environment | {"LABTUNE_CPU": "native"},  # the driver's choice counts
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Cluster(process, environment)
    finally:
        process.communicate("stop\n", timeout=60)


# In a process of its own: Ray's driver side would change this one's signals and environment.
SERVE = """
import os, sys
from tests.cluster import nodes
with nodes() as running:
    def add(cards):  # results in an object store are copied to a folder of each node's own
        own = {"LABTUNE_MIRROR": os.environ["TOY_MARKER"] + "-mirror-of-" + cards}
        return running.add(cards, environment=own)
    known = {cards: add(cards) for cards in sys.argv[1:]}
    print(running.address, flush=True)
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "stop":
            break
        if word == "add":
            known[rest[0]] = add(rest[0])
        if word == "lose":
            running.lose(known.pop(rest[0]))
        print("done", flush=True)
"""


class Cluster:
    def __init__(self, process: subprocess.Popen, environment: dict[str, str]):
        self.process, self.environment = process, environment
        assert process.stdout is not None
        self.address = process.stdout.readline().strip()

    def tell(self, *words: str) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(" ".join(words) + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().strip() == "done"

    def start(self, folder: Path, *arguments: str, **environment: str) -> subprocess.Popen:
        command = [sys.executable, "tests/support/toy.py", "--results-dir", str(folder)]
        return subprocess.Popen(
            [*command, "--address", self.address, *arguments],
            cwd=ROOT,
            env=os.environ | self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, folder: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
        process = self.start(folder, *arguments, **environment)
        shown, errors = process.communicate(timeout=280)
        return process.returncode, shown, errors


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> pd.DataFrame:
    """Return the history of the toy study, run without Ray and without faults."""
    folder = tmp_path_factory.mktemp("undisturbed")
    arguments = [a if a != "pause=1" else "pause=0" for a in SETTINGS]
    command = [
        sys.executable,
        "tests/support/toy.py",
        "--local",
        "--results-dir",
        str(folder),
        *arguments,
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=120)
    return history(folder / "toy" / "demo")


def history(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "history.csv")[METRICS]


def until(condition: Callable[[], object], seconds: float = 120) -> float:
    """Wait for a condition; return how long it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "it did not happen"
        time.sleep(0.05)
    return time.monotonic() - started


def rows(trial: Path) -> int:
    path = trial / "history.json"
    try:
        return len(json.loads(path.read_text())["rows"])
    except FileNotFoundError:
        return 0


def running(folder: Path, epochs: int = 1) -> dict[Path, dict]:
    """Return the attempts that have at least so many epochs and no end."""
    found = {}
    for path in folder.glob("trials/*/attempt.json"):
        if rows(path.parent) >= epochs and not (path.parent / "result.json").exists():
            found[path.parent] = json.loads(path.read_text())
    return found


def processes(folder: Path) -> list[psutil.Process]:
    pids = [attempt["pid"] for attempt in running(folder).values()]
    found = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    assert found
    return found


def test_every_card_takes_as_many_trials_as_fit_and_no_more(cluster, tmp_path):
    """40 trials that each wait until 21 run at once: 10 on two 11 GB cards, 11 on one of 24 GB."""
    code, shown, errors = cluster.run(
        tmp_path, "--seeds", "40", "--set", "epochs=1", "pause=0.5", "kind=gather"
    )
    assert code == 0, errors
    assert "toy: 4 nodes, 3 GPUs: 21 slots of 2 GiB; 40 trials" in shown
    folder = tmp_path / "toy" / "demo"
    declared = json.loads((folder / "study.json").read_text())
    planned = declared["slots"]["nodes"]
    assert sorted(node["count"] for node in planned) == [0, 0, 10, 11]
    marks = Path(cluster.environment["TOY_MARKER"])
    spans = []
    for path in folder.glob("trials/*/attempt.json"):
        seed = path.parent.name.rpartition("=")[2]
        came, gone = ((marks / f"{seed}-{what}").stat().st_mtime for what in ("came", "gone"))
        spans.append((came, gone, json.loads(path.read_text())["node"]))
    assert len(spans) == 40
    assert most_at_once(spans) == 21
    for node in planned:
        own = [span for span in spans if node["node"].startswith(span[2])]
        assert most_at_once(own) == node["count"]
    assert "has other digits" not in shown
    numerics = set(pd.read_csv(folder / "trials.csv")["numerics"])
    assert numerics == {declared["numerics"]["digest"]}


def most_at_once(spans: list[tuple[float, float, str]]) -> int:
    return max((sum(a <= came < b for a, b, _ in spans) for came, _, _ in spans), default=0)


def test_a_killed_worker_and_a_lost_node_cost_at_most_an_epoch(cluster, tmp_path, undisturbed):
    process = cluster.start(tmp_path, *SETTINGS, "--max-concurrent", "4", "--max-retries", "3")
    folder = tmp_path / "toy" / "demo"
    until(lambda: len(running(folder, 2)) == 4)
    victim, attempt = next(iter(running(folder, 2).items()))
    epochs = rows(victim)
    psutil.Process(attempt["pid"]).kill()
    seconds = until(lambda: rows(victim) > epochs)
    print(f"a killed worker: its trial had its next epoch after {seconds:.1f} s")
    until(lambda: len(running(folder)) > 1)
    nodes = json.loads((folder / "driver.json").read_text())["nodes"]
    used = [a["node"] for a in running(folder).values()]
    lost = max((n["node"] for n in nodes if n["count"]), key=lambda n: used.count(n[:8]))
    cards = {10: "2x11GB", 11: "1x24GB"}[next(n["count"] for n in nodes if n["node"] == lost)]
    on_it = {p: rows(p) for p, a in running(folder).items() if lost.startswith(a["node"])}
    cluster.tell("lose", cards)
    seconds = until(lambda: all(rows(p) > n or p not in running(folder) for p, n in on_it.items()))
    print(f"a lost node: its {len(on_it)} trials had their next epoch after {seconds:.1f} s")
    shown, errors = process.communicate(timeout=200)
    cluster.tell("add", cards)
    assert process.returncode == 0, shown + errors
    assert f"{victim.name}: its worker died, retry 1/3 from epoch" in shown
    # Ray needs a dozen seconds to be sure; the trials may all have moved and ended by then.
    assert "is lost: its trials move" in shown or seconds < 20
    for path, epochs in on_it.items():
        said = [line for line in shown.splitlines() if line.startswith(f"{path.name}: its worker")]
        assert said and int(said[-1].rpartition(" ")[2]) >= epochs
    pd.testing.assert_frame_equal(history(folder), undisturbed)


def test_a_lost_or_stopped_driver_is_resumed_and_a_second_one_refused(
    cluster, tmp_path, undisturbed
):
    # The second driver takes seconds to start: no trial is to end meanwhile.
    settings = [word.replace("pause=1", "pause=3") for word in SETTINGS]
    folder = tmp_path / "toy" / "demo"
    process = cluster.start(tmp_path, *settings, "--max-concurrent", "3")
    until(lambda: len(running(folder, 1)) == 3)
    code, _, errors = cluster.run(tmp_path, *settings, "--resume")
    assert code == 2 and errors.count("\n") == 1
    assert f"(process {process.pid} on {os.uname().nodename}, since" in errors
    workers = processes(folder)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive

    process = cluster.start(tmp_path, *settings, "--max-concurrent", "3", "--resume")
    until(lambda: list(folder.glob("trials/*/result.json")) and running(folder))
    workers = processes(folder)
    process.send_signal(signal.SIGTERM)
    shown, errors = process.communicate(timeout=30)
    assert process.returncode == 75
    assert "--resume" in errors and "Traceback" not in errors
    assert "resuming: 0 done, 3 continue, 3 to do" in shown
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    ended = {p: p.stat().st_mtime_ns for p in folder.glob("trials/*/result.json")}

    cluster.tell("add", "1x80GiB")  # it joins before the driver is back: 39 more slots
    code, shown, errors = cluster.run(tmp_path, *settings, "--resume")
    cluster.tell("lose", "1x80GiB")
    assert code == 0, errors
    assert "60 slots of 2 GiB" in shown and f"resuming: {len(ended)} done" in shown
    for path, modified in ended.items():
        assert path.stat().st_mtime_ns == modified
    pd.testing.assert_frame_equal(history(folder), undisturbed)


def test_a_node_that_joins_in_mid_study_gets_trials(cluster, tmp_path):
    process = cluster.start(
        tmp_path, "--slot-memory", "20GiB", "--seeds", "5", "--set", "epochs=4", "pause=1"
    )
    folder = tmp_path / "toy" / "demo"
    until(lambda: running(folder))
    cluster.tell("add", "4x24GB")
    shown, errors = process.communicate(timeout=200)
    cluster.tell("lose", "4x24GB")
    assert process.returncode == 0, errors
    assert "3 GPUs: 1 slot of 20 GiB; 5 trials" in shown
    assert "has joined: 5 nodes, 7 GPUs: 5 slots of 20 GiB" in shown
    attempts = [json.loads(p.read_text()) for p in folder.glob("trials/*/attempt.json")]
    assert len({attempt["node"] for attempt in attempts}) == 2


def test_results_in_an_object_store_survive_a_killed_worker(cluster, tmp_path, undisturbed):
    """Driver and nodes share nothing but the bucket; a trial may go on on the other node."""
    with s3_server(tmp_path / "log") as server:
        client = s3_client(server)
        client.create_bucket(Bucket="lab")
        place = f"s3://lab/results?endpoint_override=http://{server}"
        local = {"LABTUNE_MIRROR": str(tmp_path / "mirror")}
        command = [*SETTINGS, "--max-concurrent", "3", "--results-dir", place]
        process = cluster.start(tmp_path, *command, **local)

        def attempts() -> list[dict]:
            keys = [
                entry["Key"]
                for entry in client.list_objects_v2(Bucket="lab").get("Contents", [])
                if entry["Key"].endswith("attempt.json")
            ]
            whole = [client.get_object(Bucket="lab", Key=key)["Body"].read() for key in keys]
            return [json.loads(body) for body in whole]

        until(lambda: len(attempts()) >= 3)
        time.sleep(2.5)  # two epochs
        psutil.Process(attempts()[0]["pid"]).kill()
        shown, errors = process.communicate(timeout=200)
        assert process.returncode == 0, shown + errors
        assert "its worker died, retry 1/2 from epoch" in shown
        assert "report: s3://lab/results/toy/demo/report.html" in shown
        body = client.get_object(Bucket="lab", Key="results/toy/demo/history.csv")["Body"]
        (tmp_path / "history.csv").write_bytes(body.read())
    pd.testing.assert_frame_equal(history(tmp_path), undisturbed)


def test_what_cannot_work_is_refused_in_one_sentence(cluster, tmp_path):
    """Nothing is started, and each sentence names what to do."""
    code, _, errors = cluster.run(tmp_path, "--slot-memory", "30GiB")
    assert (code, errors.count("\n")) == (2, 1)
    assert "--slot-memory 30GiB is more than the largest card offers (22.2 GiB)" in errors

    token = tmp_path / "other_token"
    code, _, errors = cluster.run(tmp_path, HOME=str(tmp_path), RAY_AUTH_TOKEN_PATH=str(token))
    assert (code, errors.count("\n")) == (2, 1), errors
    assert "Ray's token is missing here" in errors
    token.write_text("f" * 64)
    code, _, errors = cluster.run(tmp_path, HOME=str(tmp_path), RAY_AUTH_TOKEN_PATH=str(token))
    assert (code, errors.count("\n")) == (2, 1), errors
    assert "give this driver the cluster's token" in errors

    assert not list(tmp_path.glob("toy/demo/trials/*"))


def test_a_node_with_other_code_is_refused(cluster, tmp_path):
    """Its node sees another folder where the driver has labtune's trainables."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no name spaces here: all nodes would see the same files")
    other = tmp_path / "trainables"
    shutil.copytree(ROOT / "trainables", other)
    (other / "birds.py").write_text("# changed\n")
    ray = Path(sys.executable).with_name("ray")
    start = f"{ray} start --address={cluster.address} --num-cpus=1 --block"
    node = subprocess.Popen(
        ["unshare", "-rm", "bash", "-c", f"mount --bind {other} {ROOT}/trainables && exec {start}"],
        env=os.environ | cluster.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert node.stdout is not None
        for line in node.stdout:
            if "Ray runtime started" in line:
                break
        code, _, errors = cluster.run(tmp_path)
    finally:
        node.terminate()
        node.communicate(timeout=30)
    assert (code, errors.count("\n")) == (2, 1), errors
    assert "runs another labtune" in errors and "bring the same files to every node" in errors
    assert not list(tmp_path.glob("toy/demo/trials/*"))


def test_another_version_of_ray_or_python_is_refused(cluster, tmp_path):
    """The cluster's own record of its versions is changed, as if it had been started by others."""
    script = f"""
import json, ray
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put
ray.init(address={cluster.address!r}, logging_level="ERROR")
key = b"CLUSTER_METADATA"
content = json.loads(_internal_kv_get(key, namespace=b"cluster"))
content["ray_version"], content["python_version"] = "2.52.0", "3.10.1"
_internal_kv_put(key, json.dumps(content).encode(), overwrite=True, namespace=b"cluster")
"""
    environment = os.environ | cluster.environment
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, check=True)
    code, _, errors = cluster.run(tmp_path)
    assert (code, errors.count("\n")) == (2, 1), errors
    for version in ("2.52.0", "3.10.1"):
        assert version in errors
