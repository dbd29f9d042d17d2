"""The command line that every study shares."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import docstring_parser
import tyro

from core import instruction_set
from core.errors import UserError
from core.study.declare import Study
from core.trial.stopping import Stopping

if TYPE_CHECKING:
    from core.storage.mirror import Mirror

LONGEST_NAME = 200  # bytes of a folder's name; file systems take 255, some only 240
ASHA = ("grace", "reduction_factor", "brackets")  # options that are rules of it alone
MOST_TRIALS = 10_000  # planned at once, in the memory of the driver
SEEDS = 2**63  # torch's generators and the tables' integers take all below


# ruff: noqa: UP045
# Optional[X] and a bare tuple, since tyro checks their defaults itself: those of X | None and
# tuple[str, ...] through typeguard, whose import takes longer than all else of --help.
WORDS = tyro.constructors.PrimitiveConstructorSpec(
    nargs="*",
    metavar="[STR [STR ...]]",
    instance_from_str=tuple,
    is_instance=lambda words: isinstance(words, tuple),
    str_from_instance=list,
)


@dataclass(frozen=True)
class Options:
    """Options of every study."""

    data_dir: Optional[Path] = None
    """Root of your own data. Switches the defaults to the lab's full scale."""
    address: Optional[str] = None
    """Ray cluster to join: auto, or HOST:PORT. Without it Ray is started here and stopped again."""
    local: bool = False
    """No Ray: trials run one after another in this process."""
    smoke: bool = False
    """Every step at toy size: seconds to a few minutes."""
    scale: Literal["demo", "full"] | None = None
    """demo: minutes on two cores (default); full: the lab's settings (default with --data-dir)."""
    seeds: Optional[int] = None
    """How many seeds each setting is run with, counted from 0."""
    set: Annotated[tuple, WORDS] = ()
    """key=value ...: override any setting listed below, or the values of a grid (norm=bn,gn)."""
    config: Optional[Path] = None
    """JSON file of settings, such as a search's best_config.json; --set goes before it."""
    scheduler: Literal["asha", "none"] | None = None
    """With --search: asha stops configurations that do worse than others at the same epoch."""
    grace: Optional[int] = None
    """asha: epochs that every configuration may run."""
    reduction_factor: Optional[int] = None
    """asha: at each rung the best 1/REDUCTION_FACTOR go on."""
    brackets: Optional[int] = None
    """asha: number of grace periods in use."""
    patience: Optional[int] = None
    """End a trial whose metric has not been better for so many epochs; 0: never."""
    search: Literal["optuna"] | None = None
    """Search for the best settings with Optuna, in place of the grid."""
    trials: int = 20
    """Configurations that --search tries."""
    part: Optional[str] = None
    """Run only this part of the study."""
    results_dir: str = "results"
    """Results go to RESULTS_DIR/<study>/<name>/: a folder that all nodes see, or s3://BUCKET/..."""
    name: Optional[str] = None
    """Name of this run of the study (default: its scale)."""
    resume: bool = False
    """Go on with what is unfinished; finished trials are never run again."""
    report_only: bool = False
    """Rebuild tables, figures and report from what is on disk, without Ray and data."""
    slot_memory: str = "2GiB"
    """GPU memory that one trial may take; "none" gives each trial a whole GPU."""
    max_concurrent: Optional[int] = None
    """At most so many trials at once (default: as many as there are slots)."""
    slot_cores: int = 1
    """Cores that one trial may use on the CPU."""
    max_retries: int = 2
    """How often a trial is started again whose process or node is lost (errors never are)."""
    skip_broken: bool = False
    """Leave unreadable images out and count them in the report, rather than stop."""

    def check(self) -> None:
        """Raise UserError for a value that no study can use."""
        from core.cluster.slots import parse_memory  # here: --help does without
        from core.storage.mirror import is_remote

        least = dict.fromkeys(("seeds", "trials", "max_concurrent", "slot_cores", *ASHA), 1)
        least |= {"max_retries": 0, "reduction_factor": 2, "patience": 0}
        for name, bound in least.items():
            value, option = getattr(self, name), f"--{name.replace('_', '-')}"
            if value is not None and value < bound:
                raise UserError(f"{option} {value}: give a whole number of at least {bound}")
        for option, count in (("--seeds", self.seeds), ("--trials", self.trials)):
            if count is not None and count > MOST_TRIALS:
                raise UserError(
                    f"{option} {count}: each is a trial with files of its own: give at most"
                    f" {MOST_TRIALS:,}"
                )
        parse_memory(self.slot_memory)
        is_remote(self.results_dir)
        if self.local and self.address is not None:
            raise UserError("--local uses no Ray and --address names a cluster: give one of them")
        if self.name is not None and not re.fullmatch(r"[\w][\w.+-]*", self.name):
            raise UserError(
                f"--name {self.name}: it names a folder: use letters, digits, '.', '_', '+', '-'"
            )
        for option, place in (("--name", self.name or ""), ("--results-dir", self.results_dir)):
            if any(len(os.fsencode(name)) > LONGEST_NAME for name in Path(place).parts):
                raise UserError(
                    f"{option} {place[:40]}...: a folder's name has at most {LONGEST_NAME} bytes"
                    " here; give a shorter one"
                )

    def chosen_scale(self) -> str:
        """Return "smoke", "demo" or "full"."""
        if self.smoke:
            return "smoke"
        return self.scale or ("full" if self.data_dir is not None else "demo")

    def remote(self, study: Study) -> Mirror | None:
        """Return the object store that results go to, if they do."""
        from core.storage.mirror import Mirror, is_remote

        if not is_remote(self.results_dir):
            return None
        return Mirror(self.results_dir, f"{study.name}/{self.name or self.chosen_scale()}")

    def folder(self, study: Study) -> Path:
        """Return the result folder: of results in an object store, the local copy."""
        remote = self.remote(study)
        if remote is not None:
            return remote.local
        place = Path(self.results_dir).expanduser().resolve()
        return place / study.name / (self.name or self.chosen_scale())


def parse(study: Study, argv: Sequence[str]) -> Options:
    """Return the options in `argv`; `--help` and malformed options end the program (0 and 2)."""
    opts = tyro.cli(
        Options,
        args=merge_assignments(spell_out(study, argv)),
        prog=f"python studies/{study.name}.py",
        description=f"{study.question}\n\n{settings_help(study)}",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    opts.check()
    return opts


def take_action(study: Study, argv: Sequence[str]) -> tuple[str, list[str]]:
    """Return which of the study's actions `argv` asks for, if any, and `argv` without it."""
    asked = [name for name in study.settings.actions if f"--{name}" in argv]
    rest = [word for word in argv if word not in {f"--{name}" for name in asked}]
    return (asked[0] if asked else ""), rest


def spell_out(study: Study, argv: Sequence[str]) -> list[str]:
    """Replace a study's own flags by the `--set` they are short for.

    Raises UserError: a flag without the value it needs.
    """
    types = typing.get_type_hints(study.config)
    words, spelled, settings = list(argv), [], []
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        flag = name.removeprefix("--").replace("_", "-")
        if not name.startswith("--") or flag not in study.settings.flags:
            spelled.append(word)
            continue
        setting = study.settings.flags[flag]
        if not equals and types[setting] is bool:
            value = "true"
        elif not equals:
            if not words or words[0].startswith("--"):
                raise UserError(f"--{flag}: give it a value, as in --{flag} {setting.upper()}")
            value = words.pop(0)
        settings += ["--set", f"{setting}={value}"]
    return [*settings, *spelled]  # first, as words that follow an option's own belong to that one


def merge_assignments(argv: Sequence[str]) -> list[str]:
    """Put what follows several `--set` behind one, as the last would replace those before it."""
    assignments: list[str] = []
    others: list[str] = []
    target = others
    for word in argv:
        if word == "--set":
            target = assignments
        elif word.startswith("--set="):
            assignments.append(word.removeprefix("--set="))
        else:
            target = others if word.startswith("-") else target
            target.append(word)
    return [*others, "--set", *assignments] if assignments else list(argv)


def settings_help(study: Study) -> str:
    """Return the settings that `--set` takes, a line each, with default and meaning."""
    documented = docstring_parser.google.parse(study.config.__doc__ or "")
    meaning = {p.arg_name: " ".join((p.description or "").split()) for p in documented.params}
    lines = ["Settings for --set (defaults of the full scale):"]
    for field in dataclasses.fields(study.config):
        default = "" if field.default is dataclasses.MISSING else f" = {_shown(field.default)}"
        lines.append(f"  {field.name}{default}: {meaning.get(field.name, '')}")
    for flag, setting in study.settings.flags.items():
        lines.append(f"--{flag} is short for --set {setting}=...")
    for name, action in study.settings.actions.items():
        first = (action.__doc__ or "").strip().partition("\n")[0]  # none under python -OO
        lines.append(f"--{name}: {first}")
    for name, part in study.parts.items():
        grid = "; ".join(f"{k}={','.join(map(str, v))}" for k, v in part.grid.items())
        lines.append(f"Part {name}: {grid}")
    lines.append(
        f"Environment: {instruction_set.CHOICE}=native computes with this CPU's own instructions:"
        " faster on some, and other digits than elsewhere (docs/numerics.md)"
    )
    return "\n".join(lines)


def stopping(study: Study, opts: Options) -> Stopping:
    """Return the study's rules of early stopping with those of the command line in their place.

    Raises UserError: halving among trials that are compared, or a rule of ASHA without ASHA.
    """
    given = {name: getattr(opts, name) for name in (*ASHA, "scheduler", "patience")}
    given = {name: value for name, value in given.items() if value is not None}
    rules = Stopping(patience=study.scales[opts.chosen_scale()].patience)
    if opts.search is not None and study.search is not None:
        rules = study.search.stopping
    rules = dataclasses.replace(rules, **given)
    if rules.scheduler == "asha":
        if opts.search is None:
            raise UserError(
                "--scheduler asha: it stops whatever is behind the others, which among compared"
                " settings and seeds selects what the comparison is to show: use it with --search,"
                " or --patience N, which ends each trial on its own plateau"
            )
        return rules
    for name in ASHA:
        if name in given:
            option = f"--{name.replace('_', '-')} {given[name]}"
            raise UserError(f"{option}: a rule of --scheduler asha, which is not used")
    return rules


def compared(opts: Options) -> Options:
    """Return the options for trials that are compared, not searched: without a search's rules."""
    unset: dict[str, Any] = dict.fromkeys(("search", "scheduler", *ASHA))
    return dataclasses.replace(opts, **unset)


def read_config(study: Study, path: Path) -> dict[str, Any]:
    """Return the settings in a JSON file, as `--set` would give them.

    Raises UserError: not a JSON object of settings of this study.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise UserError(f"--config {path}: not a readable JSON file ({e})") from e
    if not isinstance(content, dict):
        raise UserError(f'--config {path}: give an object such as {{"lr": 0.05}}')
    for key, value in content.items():
        if not isinstance(value, bool | int | float | str | None):
            raise UserError(f"--config {path}: {key} must be a number or a text")
    try:
        return parse_settings(study, [f"{key}={_shown(value)}" for key, value in content.items()])
    except UserError as e:
        raise UserError(f"--config {path}: {e}") from e


def parse_settings(study: Study, assignments: Sequence[str]) -> dict[str, Any]:
    """Return the `--set` assignments with their types; the values of a grid as lists.

    Raises UserError: not of the form key=value, an unknown key, or a value of the wrong type.
    """
    types = typing.get_type_hints(study.config)
    grid = {key for part in study.parts.values() for key in part.grid} | {"seed"}
    settings: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"--set {assignment}: write it as key=value")
        if key not in types:
            raise UserError(
                f"--set {assignment}: {study.name} has no setting {key!r}; it has"
                f" {', '.join(types)}"
            )
        if key in {field.name for field in dataclasses.fields(Options)}:
            raise UserError(f"--set {assignment}: use --{key.replace('_', '-')} instead")
        if key in grid:
            values = [_typed(key, item, types[key], assignment) for item in text.split(",")]
            settings[key] = list(dict.fromkeys(values))
        else:
            settings[key] = _single(study, key, text, types[key], assignment)
    for seed in settings.get("seed", ()):
        if not 0 <= seed < SEEDS:
            raise UserError(f"--set seed={seed}: a seed is a whole number from 0 to 2^63 - 1")
    return settings


def _single(study: Study, key: str, text: str, hint: Any, assignment: str) -> Any:
    """Return the one value of a setting that is not compared."""
    try:
        return _typed(key, text, hint, assignment)
    except UserError as e:
        try:
            first, *others = [_typed(key, item, hint, assignment) for item in text.split(",")]
        except UserError:
            raise e from None
        if not others:
            raise
        raise UserError(
            f"--set {assignment}: {study.name} compares {key} in no part, so it takes one value;"
            f" run the study once for each, as with --set {key}={_shown(first)} --name"
            f" {key}-{_shown(first)}"
        ) from e


def _typed(key: str, text: str, hint: Any, assignment: str) -> Any:
    kinds = typing.get_args(hint) or (hint,)
    if type(None) in kinds and text.strip().lower() == "none" and text not in _words(hint):
        return None
    from pydantic import TypeAdapter, ValidationError  # here, as --help does without

    try:
        return TypeAdapter(hint).validate_strings(text)
    except ValidationError as e:
        allowed = _words(hint)
        wanted = f"one of {', '.join(allowed)}" if allowed else f"of type {_type_name(hint)}"
        raise UserError(f"--set {assignment}: {key} must be {wanted}, got {text!r}") from e


def _words(hint: Any) -> list[str]:
    """Return the words among which a `Literal` chooses, alone or beside None."""
    found = [hint, *typing.get_args(hint)]
    return [word for one in found for word in typing.get_args(one) if isinstance(word, str)]


def _type_name(hint: Any) -> str:
    names = [getattr(h, "__name__", str(h)) for h in typing.get_args(hint) or (hint,)]
    return " or ".join("none" if name == "NoneType" else name for name in names)


def _shown(value: Any) -> str:
    """Return a value as `--set` takes it."""
    return "none" if value is None else str(value)
