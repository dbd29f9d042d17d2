"""Several nodes on this machine, with pretended cards: slots, losses, refusals."""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import psutil
import pytest

from tests.support.calls import PATIENCE, ROOT, history, start, toy, until
from tests.support.cluster import Remote
from tests.support.s3 import S3_KEYS, s3_client, s3_server

pytestmark = [pytest.mark.ray, pytest.mark.slow]
# Two trials at a time have two epochs each, and wait.
HELD = ["--seeds", "4", "--set", "epochs=4", "hold=3", "--max-concurrent", "2"]
JOIN = """
import sys; from core.cluster import fleet, session
try:
    with session.session(fleet.Fleet(None, 1, "none"), sys.argv[1]): print("joined")
except fleet.UserError as error: sys.exit(str(error))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Start nodes with 2 x 11 GB and 1 x 24 GB, and with a token: a driver needs it, too.

    Their interpreter's path has spaces: Ray starts workers through a shell, and unquoted they would
    never start.
    """
    place = tmp_path_factory.mktemp("cluster")
    token, spaced = place / "token", place / "a path with spaces"
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    spaced.symlink_to(Path(sys.executable).parents[1])
    known = S3_KEYS | {"PYTHONPATH": str(ROOT)}
    known |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    known |= {"TOY_MARKER": f"{place}/gather", "TOY_GATHER": "4", "TOY_GO": f"{place}/go"}
    interpreter = str(spaced / "bin" / "python")
    running = Remote("1x24GB", "2x11GB", environment=known, interpreter=interpreter)
    yield running
    running.stop()


@pytest.fixture
def go(cluster):
    """Return the folder in which held trials look for their seed, or for "all"."""
    folder = Path(cluster.environment["TOY_GO"])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    yield folder
    (folder / "all").touch()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> pd.DataFrame:
    """Return the history of the toy study, run without Ray and without faults."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert toy(folder, *HELD[:4]) == 0
    return history(folder / "toy" / "demo")


def running(folder: Path, epochs: int = 1) -> dict[Path, dict]:
    """Return the attempts of trials that have at least so many epochs and no end."""

    def rows(trial: Path) -> int:
        kept = trial / "history.json"
        return len(json.loads(kept.read_text())["rows"]) if kept.exists() else 0

    return {
        path.parent: json.loads(path.read_text())
        for path in folder.glob("trials/*/attempt.json")
        if rows(path.parent) >= epochs and not (path.parent / "result.json").exists()
    }


def end(process: subprocess.Popen, folder: Path, number: int) -> tuple[str, str]:
    """Send the driver a signal; return what it said once its trials' processes have ended."""
    workers = [psutil.Process(attempt["pid"]) for attempt in running(folder).values()]
    assert workers
    process.send_signal(number)
    said = process.communicate(timeout=PATIENCE)
    _, alive = psutil.wait_procs(workers, timeout=PATIENCE)
    assert not alive
    return said


def test_every_card_takes_as_many_trials_as_fit_and_no_more(cluster, tmp_path):
    """8 trials that each wait until 4 run at once: 1 on each 11 GB card, 2 on one of 24 GB."""
    gathering = ["--seeds", "8", "--slot-memory", "10GiB", "--set", "epochs=1", "kind=gather"]
    code, shown, errors = cluster.run(tmp_path / "results here", *gathering)
    assert code == 0, errors
    assert "toy: 2 nodes, 3 GPUs: 4 slots of 10 GiB; 8 trials" in shown
    folder = tmp_path / "results here" / "toy" / "demo"
    declared = json.loads((folder / "study.json").read_text())
    planned = declared["slots"]["nodes"]
    assert [node["count"] for node in planned] == [2, 2]
    marks = Path(cluster.environment["TOY_MARKER"])
    spans = []
    for path in folder.glob("trials/*/attempt.json"):
        seed = path.parent.name.rpartition("=")[2]
        came, gone = ((marks / f"{seed}-{what}").stat().st_mtime for what in ("came", "gone"))
        spans.append((came, gone, json.loads(path.read_text())["node"]))
    assert len(spans) == 8 and most_at_once(spans) == 4
    for node in planned:
        own = [span for span in spans if node["node"].startswith(span[2])]
        assert most_at_once(own) == node["count"]
    assert "has other digits" not in shown
    numerics = set(pd.read_csv(folder / "trials.csv")["numerics"])
    assert numerics == {declared["numerics"]["digest"]}


def most_at_once(spans: list[tuple[float, float, str]]) -> int:
    return max((sum(a <= came < b for a, b, _ in spans) for came, _, _ in spans), default=0)


def test_a_killed_worker_and_a_lost_node_cost_an_epoch_and_a_new_node_gets_trials(
    cluster, go, tmp_path, undisturbed
):
    """Driver and nodes share nothing but a bucket; a trial goes on on another node."""
    told, seen = tmp_path / "told", tmp_path / "seen"
    with s3_server(tmp_path / "log") as server, told.open("w") as out:
        client = s3_client(server)
        client.create_bucket(Bucket="lab")
        known: dict[Path, str] = {}

        def stored(epochs: int = 1) -> dict[Path, dict]:
            """Return what `running` does, of the bucket."""
            for entry in client.list_objects_v2(Bucket="lab").get("Contents", []):
                (path := seen / entry["Key"]).parent.mkdir(parents=True, exist_ok=True)
                told = path.suffix in (".json", ".csv")
                if told and known.get(path) != entry["ETag"]:
                    client.download_file("lab", entry["Key"], str(path))
                    known[path] = entry["ETag"]
            return running(seen / "results/toy/demo", epochs)

        local = {"LABTUNE_MIRROR": str(tmp_path / "mirror"), "PYTHONUNBUFFERED": "1"}
        place = f"s3://lab/results?endpoint_override=http://{server}"
        process = cluster.start(place, *HELD, "--max-retries", "3", stdout=out, **local)
        until(lambda: len(stored(2)) == 2)
        victim, attempt = next(iter(stored(2).items()))
        psutil.Process(attempt["pid"]).kill()
        until(lambda: stored()[victim]["attempt"] == 2)
        folder = victim.parents[1]
        nodes = json.loads((folder / "driver.json").read_text())["nodes"]
        lost = next(node["node"][:8] for node in nodes if node["gpus"] == 2)
        on_it = {path for path, a in stored().items() if a["node"] == lost}
        assert on_it  # each node has one of the two
        cluster.tell("lose", "2x11GB")
        until(lambda: all(stored()[path]["node"] != lost for path in on_it))
        cluster.tell("add", "4x80GiB")  # more slots than others have: the next trial is its
        until(lambda: "has joined" in told.read_text())
        (go / "all").touch()
        _, errors = process.communicate(timeout=PATIENCE)
        stored()
    shown = told.read_text()
    assert process.returncode == 0, shown + errors
    assert "toy: 2 nodes, 3 GPUs: 21 slots of 2 GiB, at most 2 at once; 4 trials" in shown
    assert f"{victim.name}: its worker died, retry 1/3 from epoch 2" in shown
    assert "is lost: its trials move" in shown
    for path in on_it:
        said = [line for line in shown.splitlines() if line.startswith(f"{path.name}: its worker")]
        assert said and said[-1].endswith(" from epoch 2")
    assert "has joined: 2 nodes, 5 GPUs: 167 slots of 2 GiB" in shown
    last = json.loads((folder / "trials" / "kind=train,seed=3" / "attempt.json").read_text())
    assert last["node"] not in {node["node"][:8] for node in nodes}
    assert "report: s3://lab/results/toy/demo/report.html" in shown
    pd.testing.assert_frame_equal(history(folder), undisturbed)


def test_a_lost_or_stopped_driver_is_resumed_and_a_second_one_refused(
    cluster, go, tmp_path, undisturbed, monkeypatch
):
    folder = tmp_path / "toy" / "demo"
    process = cluster.start(tmp_path, *HELD)
    until(lambda: len(running(folder, 2)) == 2)
    monkeypatch.setenv("TOY_GO", str(go))
    with contextlib.redirect_stderr(io.StringIO()) as refused:
        assert toy(tmp_path, *HELD, "--resume") == 2
    assert refused.getvalue().count("\n") == 1
    assert f"(process {process.pid} on {os.uname().nodename}, since" in refused.getvalue()
    end(process, folder, signal.SIGKILL)

    cluster.tell("lose", cluster.cards[-1])  # it is gone before the driver is back
    process = cluster.start(tmp_path, *HELD, "--resume")
    (go / "0").touch()
    until(lambda: list(folder.glob("trials/*/result.json")) and len(running(folder, 2)) == 2)
    shown, errors = end(process, folder, signal.SIGTERM)
    assert process.returncode == 75
    assert "--resume" in errors and "Traceback" not in errors
    assert "11 slots of 2 GiB, at most 2" in shown  # of 1x24GB
    assert "resuming: 0 done, 2 continue, 2 to do" in shown

    (go / "all").touch()
    ended = {p: p.stat().st_mtime_ns for p in folder.glob("trials/*/result.json")}
    assert toy(tmp_path, *HELD, "--resume") == 0  # here goes on what a cluster began
    assert ended and {p: p.stat().st_mtime_ns for p in ended} == ended
    pd.testing.assert_frame_equal(history(folder), undisturbed)


def test_a_cluster_that_cannot_be_joined_is_refused_in_one_sentence(cluster, tmp_path):
    """And the sentence names what to do."""
    (tmp_path / "wrong").write_text("f" * 64)
    missing, wrong = ({"RAY_AUTH_TOKEN_PATH": f"{tmp_path}/{n}"} for n in ("missing", "wrong"))
    refused = (
        (missing, "Ray's token is missing here"),
        (wrong, "give this driver the cluster's token"),
        ({}, "the cluster runs Ray 2.52.0 and Python 3.10.1, this driver Ray "),
    )
    own = (version("ray"), platform.python_version())
    cluster.tell("claim", "2.52.0", "3.10.1")
    environment = cluster.environment | {"HOME": str(tmp_path)}
    drivers = [
        start("-c", JOIN, cluster.address, **environment | given, interpreter=cluster.interpreter)
        for given, _ in refused
    ]
    for process, (_, words) in zip(drivers, refused, strict=True):
        shown, errors = process.communicate(timeout=PATIENCE)
        assert (shown, errors.count("\n")) == ("", 1) and words in errors, errors
    cluster.tell("claim", *own)
