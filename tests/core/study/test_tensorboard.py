"""TensorBoard's files: curves while trials run, HParams with what is compared."""

from __future__ import annotations

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from core.study import tensorboard
from tests.support.calls import history, toy


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a study in which some trials diverge."""
    results = tmp_path_factory.mktemp("results")
    assert toy(results, "--set", "kind=train,diverge", "--seeds", "2") == 1
    return results / "toy" / "demo"


def test_tensorboard_shows_the_curves_of_every_trial(folder):
    rows = history(folder)
    runs = sorted(p for p in (folder / "tensorboard").iterdir() if p.name != "study")
    assert [p.name for p in runs] == sorted(rows.trial.unique())
    for run in runs:
        events = EventAccumulator(str(run)).Reload()
        own = rows[rows.trial == run.name]
        for tag, values in (
            ("val/accuracy", own.val_accuracy),
            ("val/accuracy_best", own.val_accuracy.cummax()),
            ("train/loss", own.train_loss),
        ):
            curve = [(e.step, pytest.approx(e.value, rel=1e-6)) for e in events.Scalars(tag)]
            assert list(zip(own.epoch, values, strict=True)) == curve
        assert all("/" in tag for tag in events.Tags()["scalars"])


def test_hparams_shows_what_is_compared_and_the_metric_alone(folder):
    def content(run: str, tag: str):
        data = EventAccumulator(str(folder / "tensorboard" / run)).Reload().SummaryMetadata(tag)
        return HParamsPluginData.FromString(data.plugin_data.content)

    columns = content("study", "_hparams_/experiment").experiment
    assert [info.name for info in columns.hparam_infos] == ["kind", "seed"]
    assert [info.name.tag for info in columns.metric_infos] == ["val/accuracy", "val/accuracy_best"]
    start = content("kind=train,seed=1", "_hparams_/session_start_info").session_start_info
    assert start.group_name == "kind=train,seed=1"
    assert start.hparams["kind"].string_value == "train"
    assert start.hparams["seed"].number_value == 1
    assert set(start.hparams) == {"kind", "seed"}
    for kind, status in (("train", "STATUS_SUCCESS"), ("diverge", "STATUS_FAILURE")):
        end = content(f"kind={kind},seed=0", "_hparams_/session_end_info").session_end_info
        assert Status.Name(end.status) == status
    texts = EventAccumulator(str(folder / "tensorboard" / "study")).Reload()
    shared = texts.Tensors(texts.Tags()["tensors"][-1])[0].tensor_proto.string_val[0].decode()
    assert "| epochs | 4 |" in shared and "| seed" not in shared


def test_a_search_shows_what_it_varies(tmp_path):
    declared = {"metric": "loss", "mode": "min", "search": {"space": {"lr": {}, "kind": {}}}}
    config = {"lr": 0.02, "kind": "train", "epochs": 2}
    proposed = {"trial": "search-0000", "part": "search", "config": config}
    declared |= {"constants": {"epochs": 2, "lr": 0.1}, "trials": [proposed]}
    live = tensorboard.Live(tmp_path, declared)
    live.row("search-0000", {"epoch": 1, "loss": 2.0})
    live.row("search-0000", {"epoch": 2, "loss": 3.0})
    run = EventAccumulator(str(tmp_path / "tensorboard" / "search-0000")).Reload()  # not closed yet
    assert [e.value for e in run.Scalars("metrics/loss_best")] == [2, 2]
    data = run.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = HParamsPluginData.FromString(data).session_start_info.hparams
    assert settings["lr"].number_value == 0.02 and set(settings) == {"lr", "kind"}


def test_what_differs_between_parts_is_told_by_the_part():
    """In one part lr is compared; batch_size and model only come with the parts."""
    trials = [
        {"part": "a", "config": {"lr": 0.1, "batch_size": 8, "model": "x", "seed": 0}},
        {"part": "a", "config": {"lr": 0.2, "batch_size": 8, "model": "x", "seed": 0}},
        {"part": "b", "config": {"lr": 0.3, "batch_size": 9, "model": "y", "seed": 0}},
        {"part": "b", "config": {"lr": 0.3, "batch_size": 9, "model": "y", "seed": 1}},
    ]
    expected = {"part": ["a", "b"], "lr": [0.1, 0.2, 0.3], "seed": [0, 1]}
    assert tensorboard.compared({"trials": trials}) == expected


def test_a_study_goes_on_where_tensorboards_files_cannot_be_written(tmp_path, capsys):
    folder = tmp_path / "toy" / "demo"
    folder.mkdir(parents=True)
    (folder / "tensorboard").write_text("in the way")
    toy(tmp_path)
    assert capsys.readouterr().out.count("the study goes on without them") == 1
    assert (folder / "trials.csv").is_file()
