"""Results in an object store, against a real server that speaks S3 (moto's, on loopback)."""

from __future__ import annotations

import datetime
import json
import signal
import urllib.request
from pathlib import Path

import pandas as pd
import pytest

from core.errors import StorageError, UserError
from core.storage.mirror import Mirror, is_remote
from tests.support.calls import PATIENCE, TOY, history, python, refusal, start, toy, until
from tests.support.s3 import S3_KEYS, s3_client, s3_server
from tests.support.toy import study


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3") / "log") as address:
        s3_client(address).create_bucket(Bucket="lab")
        yield address


@pytest.fixture(autouse=True)
def keys(monkeypatch, tmp_path):
    for key, value in S3_KEYS.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("LABTUNE_MIRROR", str(tmp_path / "mirror"))


def place(server: str, folder: str, bucket: str = "lab") -> str:
    return f"s3://{bucket}/{folder}?endpoint_override=http://{server}"


def holding(server: str, folder: str, here: Path, *names: str) -> Mirror:
    """Return a mirror of files that were written here and sent."""
    mirror = Mirror(place(server, folder), "study", here)
    for name in names:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(name)
    mirror.push_tree({})
    return mirror


def objects(server: str, prefix: str) -> set[str]:
    listed = s3_client(server).list_objects_v2(Bucket="lab", Prefix=prefix)
    keys = [entry["Key"] for entry in listed.get("Contents", [])]
    return {key.removeprefix(prefix) for key in keys if not key.endswith("/")}


def test_a_study_in_a_bucket_has_the_files_numbers_and_reports_of_one_in_a_folder(
    server, tmp_path, monkeypatch
):
    assert toy(tmp_path, "--seeds", "1") == toy(place(server, "whole"), "--seeds", "1") == 0
    there = objects(server, "whole/toy/demo/")
    here = tmp_path / "toy" / "demo"
    wanted = {
        p.relative_to(here).as_posix()
        for p in here.rglob("*")
        if p.is_file() and "tensorboard" not in p.parts and p.name not in ("lock", "study.lock")
    }
    assert wanted <= there
    assert any(name.startswith("tensorboard/") for name in there)
    assert not any(name.endswith((".pt", ".tmp")) and "epoch" in name for name in there)
    client = s3_client(server)
    client.download_file("lab", "whole/toy/demo/history.csv", str(tmp_path / "history.csv"))
    pd.testing.assert_frame_equal(history(tmp_path), history(here))
    client.delete_object(Bucket="lab", Key="whole/toy/demo/report.html")
    monkeypatch.setenv("LABTUNE_MIRROR", str(tmp_path / "another machine"))
    assert toy(place(server, "whole"), "--report-only") == 0
    assert "report.html" in objects(server, "whole/toy/demo/")


def test_a_killed_study_goes_on_on_a_machine_that_has_only_the_bucket(
    server, tmp_path, monkeypatch
):
    two = ("--seeds", "2")
    toy(tmp_path / "whole", *two)
    killed = [*TOY, place(server, "killed"), "--local", *two]
    assert python(*killed, TOY_KILL="kind=train,seed=1:3").returncode == -signal.SIGKILL
    left = objects(server, "killed/toy/demo/trials/kind=train,seed=1/")
    assert any("epoch-" in name for name in left)
    monkeypatch.setenv("LABTUNE_MIRROR", str(tmp_path / "another machine"))
    assert toy(place(server, "killed"), *two, "--resume") == 0
    folder = Mirror(place(server, "killed"), "toy/demo").local
    pd.testing.assert_frame_equal(history(folder), history(tmp_path / "whole" / "toy" / "demo"))
    rows = json.loads((folder / "trials" / "kind=train,seed=1" / "history.json").read_text())
    assert [row["epoch"] for row in rows["rows"]] == [1, 2, 3, 4]


def test_a_second_driver_is_refused_by_the_signs_of_life_of_the_first(server):
    arguments = (place(server, "shared"), "--seeds", "1")
    toy(*arguments)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    driver = {"host": "elsewhere", "pid": 17, "started": now, "beat": now, "nodes": []}
    told = {"Bucket": "lab", "Key": "shared/toy/demo/driver.json"}
    s3_client(server).put_object(**told, Body=json.dumps(driver).encode())
    error = refusal(study, *arguments, "--resume")
    assert "s3://lab/shared/toy/demo is in use" in error and "process 17 on elsewhere" in error
    driver["beat"] = "2026-01-01T00:00:00+00:00"  # it stopped giving signs of life
    s3_client(server).put_object(**told, Body=json.dumps(driver).encode())
    assert toy(*arguments, "--resume") == 0


def test_other_commands_on_this_machine_leave_a_running_study_alone(server, tmp_path):
    arguments = (place(server, "busy"), "--set", "kind=gather", "--seeds", "1")
    waiting = {"TOY_MARKER": str(tmp_path / "gathered"), "TOY_GATHER": "2"}  # there is but one
    first = start(*TOY, *arguments, "--local", **waiting)
    until(lambda: (tmp_path / "gathered" / "0-came").exists())
    folder = Mirror(place(server, "busy"), "toy/demo").local
    before = {p: p.stat().st_ino for p in folder.rglob("*") if p.name != "driver.json"}
    error = refusal(study, *arguments, "--resume")
    assert f"is in use by another run of this study (process {first.pid} on " in error
    assert toy(*arguments, "--report-only") == 1  # the trial has not ended yet
    assert len(before) > 5 and all(p.stat().st_ino == inode for p, inode in before.items())
    key = "busy/toy/demo/trials.csv"
    table = s3_client(server).get_object(Bucket="lab", Key=key)["Body"].read().decode()
    assert "unfinished" in table
    (tmp_path / "gathered" / "1-came").touch()
    shown, _ = first.communicate(timeout=PATIENCE)
    assert first.returncode == 0, shown
    assert list(history(folder).epoch) == [1, 2, 3, 4]


def test_an_object_that_goes_while_others_are_fetched_is_left_out(server, tmp_path):
    mirror = holding(server, "going", tmp_path / "here", "a.json", "b.json", "c.json")
    other = Mirror(place(server, "going"), "study", tmp_path / "there")
    store, root = other._store

    class Going:
        """The store, in which an object goes once it has been listed."""

        def __getattr__(self, name):
            return getattr(store, name)

        def get_file_info(self, selector):
            found = store.get_file_info(selector)
            mirror.remove(tmp_path / "here" / "b.json")
            return found

    other._store = Going(), root
    other.pull()
    assert sorted(p.name for p in (tmp_path / "there").iterdir()) == ["a.json", "c.json"]


def test_only_what_a_command_changed_is_sent(server, tmp_path):
    mirror = holding(server, "changed", tmp_path / "here", "old", "kept")
    before = mirror.contents()
    s3_client(server).put_object(Bucket="lab", Key="changed/study/kept", Body=b"newer")
    (tmp_path / "here" / "old").write_text("newer here")
    mirror.push_tree(before)
    other = Mirror(place(server, "changed"), "study", tmp_path / "there")
    other.pull()
    assert (tmp_path / "there" / "kept").read_text() == "newer"
    assert (tmp_path / "there" / "old").read_text() == "newer here"


@pytest.mark.parametrize(
    "where, words",
    [
        ("s3://absent/results?endpoint_override=http://{server}", "s3://absent/results"),
        ("ftp://lab/results", "give a folder or s3://"),
        ("s3://lab/results?endpoint_override=http://127.0.0.1:9&scheme=http", "s3://lab/results"),
    ],
)
def test_places_that_cannot_be_used_are_one_sentence(server, monkeypatch, where, words):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # or a dead address is tried for a while
    assert words in refusal(study, where.format(server=server))


def test_a_bucket_without_rights_is_one_sentence(server):
    """For a while the server asks for keys that nobody has."""

    def allow(calls: bytes) -> None:
        url, plain = f"http://{server}/moto-api/reset-auth", {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(url, calls, plain)).close()

    allow(b"0")
    try:
        error = refusal(study, place(server, "mine"))
    finally:
        allow(b"inf")
    assert "cannot use s3://lab/mine/toy/demo" in error
    assert "check the address and your rights" in error


def test_objects_appear_and_go_with_their_files(server, tmp_path):
    mirror = Mirror(place(server, "plain"), "study", tmp_path / "here")
    (tmp_path / "here" / "a").mkdir(parents=True)
    path = tmp_path / "here" / "a" / "b c.bin"
    path.write_bytes(b"123")
    mirror.push(path)
    assert objects(server, "plain/study/") == {"a/b c.bin"}
    other = Mirror(place(server, "plain"), "study", tmp_path / "there")
    other.pull()
    assert (tmp_path / "there" / "a" / "b c.bin").read_bytes() == b"123"
    mirror.remove(path)
    mirror.remove(path)  # is gone already
    assert objects(server, "plain/study/") == set()
    other.pull()
    assert not list((tmp_path / "there").rglob("*.bin"))
    with pytest.raises(StorageError, match="rights"):
        Mirror(place(server, "plain", "absent"), "study", tmp_path / "here").push(path)


def test_only_object_stores_are_remote():
    assert is_remote("s3://b/c") and not is_remote("results") and not is_remote("/a:b//c")
    with pytest.raises(UserError):
        is_remote("http://host/results")
