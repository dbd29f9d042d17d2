"""What a study may add to the common command line: flags, actions, settings that follow, parts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from core.errors import UserError
from core.study import Data, Part, Settings, options
from core.study.plan import plan
from tests.support import toy
from tests.support.calls import command


@dataclasses.dataclass(frozen=True)
class Config(toy.Config):
    """Settings of a toy with a file and a switch.

    Attributes:
        weights: a file.
        slow: wait a little.
    """

    weights: str = "none"
    slow: bool = False


def prepare(settings):
    where = settings.get("weights", "none")
    return {"kind": "synthetic", "fingerprint": "toy", "seen": Path(where).name, "at": where}


def train(config, report):
    kept = Path(config.pop("weights"))
    config.pop("slow")
    assert kept.is_absolute() and kept.read_text() == "tensors"
    toy.train_toy(config, report)


def check(settings, folder):
    """Look whether two epochs are asked for."""
    return 7 if settings == {"epochs": 2} else 8


study = dataclasses.replace(
    toy.study,
    config=Config,
    trainable=train,
    data=Data(prepare),
    settings=Settings(
        private=("data_dir", "weights"),
        flags={"weights": "weights", "slow": "slow", "passes": "epochs"},
        adjust=lambda settings, scale: {"pause": 0.25, "epochs": 3} if "lr" in settings else {},
        actions={"check": check},
    ),
)


@pytest.mark.parametrize(
    "given, expected",
    [
        (["--passes", "3"], ["--set", "epochs=3"]),
        (["--passes=3", "--slow"], ["--set", "epochs=3", "--set", "slow=true"]),
        (["--seeds", "2", "--slow"], ["--set", "slow=true", "--seeds", "2"]),
        (["--set", "lr=1", "--local"], ["--set", "lr=1", "--local"]),
    ],
)
def test_a_flag_is_short_for_a_setting(given, expected):
    assert options.spell_out(study, given) == expected


def test_a_flag_without_its_value_is_refused():
    with pytest.raises(UserError, match=r"--passes: give it a value"):
        options.spell_out(study, ["--passes", "--local"])


def test_a_place_is_absolute_and_no_trials_own_and_settings_follow_behind_what_was_set(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("w.pt").write_text("tensors")
    words = ["--weights", "w.pt", "--passes", "1", "--set", "lr=0.2", "--seeds", "2"]
    assert command(study, tmp_path, *words) == 0
    declared = json.loads((tmp_path / "toy" / "demo" / "study.json").read_text())
    assert declared["data"]["at"] == str(tmp_path / "w.pt")
    for trial in declared["trials"]:
        assert "weights" not in trial["config"]
        assert trial["config"].items() >= {"pause": 0.25, "epochs": 1, "lr": 0.2}.items()


def test_an_action_runs_in_place_of_the_study(tmp_path):
    assert command(study, tmp_path, "--check", "--passes", "2") == 7
    assert command(study, tmp_path, "--check") == 8
    assert not list(tmp_path.iterdir())


def test_help_names_flags_and_actions(tmp_path, capsys):
    with pytest.raises(SystemExit):
        command(study, tmp_path, "--help")
    shown = capsys.readouterr().out
    assert "--passes is short for --set epochs=" in shown and "--check: Look whether" in shown


def test_parts_for_a_setting_a_scale_and_seeds_of_their_own():
    parts = {
        "main": Part(grid={"kind": ["train"]}, at={"smoke": {"epochs": 2}}),
        "slow": Part(grid={"seed": [5, 6, 7]}, fixed={"epochs": 9}, when="slow"),
    }
    several = dataclasses.replace(study, parts=parts)
    small = plan(several, "smoke", None, None, {})
    assert [(p.part, p.config["epochs"]) for p in small.trials] == [("main", 2)]
    both = plan(several, "demo", None, None, {"slow": True})
    own = [p.config["seed"] for p in both.trials if p.part == "slow"]
    assert own == [5, 6, 7] and len(both.trials) == 6
    asked = plan(several, "demo", None, 1, {"slow": True})
    assert [p.config["seed"] for p in asked.trials] == [0, 0]
