"""Several nodes on this machine, with pretended cards: slots, losses, refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import psutil
import pytest

from tests.support.calls import ROOT, history, python, toy, until
from tests.support.cluster import Remote
from tests.support.s3 import S3_KEYS, s3_client, s3_server

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.xdist_group("cluster")]
SETTINGS = ["--seeds", "6", "--set", "epochs=6"]
HELD = [*SETTINGS, "hold=3"]  # each trial has two epochs and waits


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
    toys = {"TOY_MARKER": f"{marks}/gather", "TOY_GATHER": "9", "TOY_GO": f"{marks}/go"}
    environment = token | S3_KEYS | {"PYTHONPATH": str(ROOT)} | toys
    running = Remote("2x11GB", "1x24GB", "0", environment=environment)
    yield running
    running.stop()


@pytest.fixture
def go(cluster):
    """Return the folder in which held trials look for their name, or for "all"."""
    folder = Path(cluster.environment["TOY_GO"])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    yield folder
    (folder / "all").touch()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> pd.DataFrame:
    """Return the history of the toy study, run without Ray and without faults."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert toy(folder, *SETTINGS) == 0
    return history(folder / "toy" / "demo")


def rows(trial: Path) -> int:
    try:
        return len(json.loads((trial / "history.json").read_text())["rows"])
    except FileNotFoundError:
        return 0


def running(folder: Path, epochs: int = 1) -> dict[Path, dict]:
    """Return the attempts of trials that have at least so many epochs and no end."""
    return {
        path.parent: json.loads(path.read_text())
        for path in folder.glob("trials/*/attempt.json")
        if rows(path.parent) >= epochs and not (path.parent / "result.json").exists()
    }


def processes(folder: Path) -> list[psutil.Process]:
    pids = [attempt["pid"] for attempt in running(folder).values()]
    found = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    assert found
    return found


def test_every_card_takes_as_many_trials_as_fit_and_no_more(cluster, tmp_path):
    """18 trials that each wait until 9 run at once: 4 on two 11 GB cards, 5 on one of 24 GB."""
    gathering = ["--seeds", "18", "--slot-memory", "4GiB", "--set", "epochs=1", "kind=gather"]
    code, shown, errors = cluster.run(tmp_path, *gathering)
    assert code == 0, errors
    assert "toy: 4 nodes, 3 GPUs: 9 slots of 4 GiB; 18 trials" in shown
    folder = tmp_path / "toy" / "demo"
    declared = json.loads((folder / "study.json").read_text())
    planned = declared["slots"]["nodes"]
    assert sorted(node["count"] for node in planned) == [0, 0, 4, 5]
    marks = Path(cluster.environment["TOY_MARKER"])
    spans = []
    for path in folder.glob("trials/*/attempt.json"):
        seed = path.parent.name.rpartition("=")[2]
        came, gone = ((marks / f"{seed}-{what}").stat().st_mtime for what in ("came", "gone"))
        spans.append((came, gone, json.loads(path.read_text())["node"]))
    assert len(spans) == 18
    assert most_at_once(spans) == 9
    for node in planned:
        own = [span for span in spans if node["node"].startswith(span[2])]
        assert most_at_once(own) == node["count"]
    assert "has other digits" not in shown
    numerics = set(pd.read_csv(folder / "trials.csv")["numerics"])
    assert numerics == {declared["numerics"]["digest"]}


def most_at_once(spans: list[tuple[float, float, str]]) -> int:
    return max((sum(a <= came < b for a, b, _ in spans) for came, _, _ in spans), default=0)


def test_a_killed_worker_and_a_lost_node_cost_at_most_an_epoch(cluster, go, tmp_path, undisturbed):
    process = cluster.start(tmp_path, *HELD, "--max-concurrent", "4", "--max-retries", "3")
    folder = tmp_path / "toy" / "demo"
    until(lambda: len(running(folder, 2)) == 4)
    victim, attempt = next(iter(running(folder, 2).items()))
    psutil.Process(attempt["pid"]).kill()
    until(lambda: running(folder)[victim]["attempt"] == 2)
    nodes = json.loads((folder / "driver.json").read_text())["nodes"]
    used = [a["node"] for a in running(folder).values()]
    lost = max((n["node"] for n in nodes if n["count"]), key=lambda n: used.count(n[:8]))
    cards = {10: "2x11GB", 11: "1x24GB"}[next(n["count"] for n in nodes if n["node"] == lost)]
    on_it = {p for p, a in running(folder).items() if lost.startswith(a["node"])}
    cluster.tell("lose", cards)
    until(lambda: all(not lost.startswith(running(folder)[p]["node"]) for p in on_it))
    (go / "all").touch()
    shown, errors = process.communicate(timeout=200)
    cluster.tell("add", cards)
    assert process.returncode == 0, shown + errors
    assert f"{victim.name}: its worker died, retry 1/3 from epoch 2" in shown
    assert "is lost: its trials move" in shown
    for path in on_it:
        said = [line for line in shown.splitlines() if line.startswith(f"{path.name}: its worker")]
        assert said and said[-1].endswith(" from epoch 2")
    pd.testing.assert_frame_equal(history(folder), undisturbed)


def test_a_lost_or_stopped_driver_is_resumed_and_a_second_one_refused(
    cluster, go, tmp_path, undisturbed
):
    folder = tmp_path / "toy" / "demo"
    process = cluster.start(tmp_path, *HELD, "--max-concurrent", "3")
    until(lambda: len(running(folder, 2)) == 3)
    code, _, errors = cluster.run(tmp_path, *HELD, "--resume")
    assert code == 2 and errors.count("\n") == 1
    assert f"(process {process.pid} on {os.uname().nodename}, since" in errors
    workers = processes(folder)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=120)
    assert not alive

    process = cluster.start(tmp_path, *HELD, "--max-concurrent", "3", "--resume")
    (go / "0").touch()
    until(lambda: list(folder.glob("trials/*/result.json")) and len(running(folder, 2)) == 3)
    workers = processes(folder)
    process.send_signal(signal.SIGTERM)
    shown, errors = process.communicate(timeout=120)
    assert process.returncode == 75
    assert "--resume" in errors and "Traceback" not in errors
    assert "resuming: 0 done, 3 continue, 3 to do" in shown
    _, alive = psutil.wait_procs(workers, timeout=120)
    assert not alive
    ended = {p: p.stat().st_mtime_ns for p in folder.glob("trials/*/result.json")}

    cluster.tell("add", "1x80GiB")  # it joins before the driver is back: 39 more slots
    (go / "all").touch()
    code, shown, errors = cluster.run(tmp_path, *HELD, "--resume")
    cluster.tell("lose", "1x80GiB")
    assert code == 0, errors
    assert "60 slots of 2 GiB" in shown and f"resuming: {len(ended)} done" in shown
    for path, modified in ended.items():
        assert path.stat().st_mtime_ns == modified
    pd.testing.assert_frame_equal(history(folder), undisturbed)


def test_a_node_that_joins_in_mid_study_gets_trials(cluster, go, tmp_path):
    process = cluster.start(tmp_path, "--slot-memory", "20GiB", "--seeds", "5", "--set", "hold=2")
    folder = tmp_path / "toy" / "demo"
    until(lambda: running(folder))
    cluster.tell("add", "4x24GB")
    until(lambda: len({attempt["node"] for attempt in running(folder).values()}) == 2)
    (go / "all").touch()
    shown, errors = process.communicate(timeout=200)
    cluster.tell("lose", "4x24GB")
    assert process.returncode == 0, errors
    assert "3 GPUs: 1 slot of 20 GiB; 5 trials" in shown
    assert "has joined: 5 nodes, 7 GPUs: 5 slots of 20 GiB" in shown


def test_results_in_an_object_store_survive_a_killed_worker(cluster, go, tmp_path, undisturbed):
    """Driver and nodes share nothing but the bucket; a trial may go on on the other node."""
    with s3_server(tmp_path / "log") as server:
        client = s3_client(server)
        client.create_bucket(Bucket="lab")
        place = f"s3://lab/results?endpoint_override=http://{server}"
        local = {"LABTUNE_MIRROR": str(tmp_path / "mirror")}
        process = cluster.start(place, *HELD, "--max-concurrent", "3", **local)

        def stored(name: str) -> list[dict]:
            listed = client.list_objects_v2(Bucket="lab").get("Contents", [])
            keys = [entry["Key"] for entry in listed if entry["Key"].endswith(name)]
            whole = [client.get_object(Bucket="lab", Key=key)["Body"].read() for key in keys]
            return [json.loads(body) for body in whole]

        until(lambda: [len(h["rows"]) for h in stored("history.json")] == [2, 2, 2])
        psutil.Process(stored("attempt.json")[0]["pid"]).kill()
        (go / "all").touch()
        shown, errors = process.communicate(timeout=200)
        assert process.returncode == 0, shown + errors
        assert "its worker died, retry 1/2 from epoch 2" in shown
        assert "report: s3://lab/results/toy/demo/report.html" in shown
        body = client.get_object(Bucket="lab", Key="results/toy/demo/history.csv")["Body"]
        (tmp_path / "history.csv").write_bytes(body.read())
    pd.testing.assert_frame_equal(history(tmp_path), undisturbed)


def test_nodes_whose_interpreter_lies_in_a_folder_with_spaces(token, tmp_path):
    """Ray starts workers through a shell: unquoted they never start, and the study waits."""
    spaced = tmp_path / "a path with spaces"
    spaced.symlink_to(Path(sys.executable).parents[1])
    known = token | {"PYTHONPATH": str(ROOT)}
    cluster = Remote("0", environment=known, interpreter=str(spaced / "bin" / "python"))
    code, shown, errors = cluster.run(tmp_path / "results here", "--seeds", "1")
    cluster.stop()
    assert code == 0, shown + errors
    assert "1 of 1 trials" in shown


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
    (other / "rules.py").write_text("# changed\n")
    start = [Path(sys.executable).with_name("ray"), "start", f"--address={cluster.address}"]
    hidden = 'mount --bind "$0" "$1" && shift && exec "$@"'
    command = ["unshare", "-rm", "bash", "-c", hidden, other, ROOT / "trainables", *start]
    node = subprocess.Popen(
        [*map(str, command), "--num-cpus=1", "--block"],
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
        node.communicate(timeout=120)
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
    python("-c", script, check=True, **cluster.environment)
    code, _, errors = cluster.run(tmp_path)
    assert (code, errors.count("\n")) == (2, 1), errors
    for version in ("2.52.0", "3.10.1"):
        assert version in errors
