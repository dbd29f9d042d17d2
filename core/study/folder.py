"""A study's result folder: whether it can be used, and what has ended in it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError, refused
from core.storage import mirror
from core.study import options
from core.study.declare import Study
from core.study.options import Options
from core.trial import records

FINAL = ("finished", "stopped", "diverged")  # never run again; "failed" is tried again on resume


def check_folder(folder: Path, *, resume: bool) -> None:
    """Raise UserError for a folder that cannot be written, a study there, or none to resume."""
    look, write = f"cannot look into {folder}", f"cannot write to {folder}"
    with refused(lambda e: UserError(f"{look} ({e.strerror}): choose another place")):
        exists = (folder / "study.json").is_file()
    if exists and not resume:
        raise UserError(
            f"{mirror.shown(folder)} already holds a study: add --resume to go on with it,"
            " --report-only to rebuild its report, or choose another --name"
        )
    if resume and not exists:
        raise UserError(
            f"--resume: no study at {mirror.shown(folder)}; check --results-dir and --name"
        )
    probe = folder / f".writable-{os.getpid()}"
    with refused(lambda e: UserError(f"{write} ({e.strerror}): choose another --results-dir")):
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()  # nothing is left behind should the data turn out unusable


def is_final(folder: Path) -> bool:
    """Return whether the trial in `folder` has ended in a way that is not tried again."""
    result = records.read_result(folder)
    return result is not None and result["state"] in FINAL


def chosen_settings(study: Study, opts: Options) -> dict[str, Any]:
    """Return what the user set, with what follows from it."""
    settings = options.read_config(study, opts.config) if opts.config else {}
    settings |= options.parse_settings(study, opts.set)
    if study.settings.adjust is not None:
        settings = {**study.settings.adjust(settings, opts.chosen_scale()), **settings}
    return settings


def private_settings(study: Study, opts: Options, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the study's settings that say where things are on this machine."""
    given = {
        "data_dir": None if opts.data_dir is None else str(opts.data_dir.expanduser().resolve()),
        "skip_broken": opts.skip_broken,
    }
    given |= {key: _located(settings[key]) for key in study.settings.private if key in settings}
    known = {field.name for field in dataclasses.fields(study.config)}
    return {key: value for key, value in given.items() if key in known}


def _located(value: Any) -> Any:
    """Return a path that exists as an absolute one: workers run in folders of their own."""
    if not isinstance(value, str) or not Path(value).expanduser().exists():
        return value
    return str(Path(value).expanduser().resolve())
