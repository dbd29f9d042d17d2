"""What `study.json` says of a study, and whether a later command line asks for the same."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from core import provenance
from core.cluster import slots
from core.errors import UserError
from core.storage.files import finite
from core.study import options
from core.study.declare import Study
from core.study.options import Options
from core.study.plan import Plan, Planned

IDENTITY = ("study", "scale", "grid", "metric", "mode", "trials", "stopping")


def declaration(
    study: Study,
    opts: Options,
    planned: Plan,
    data: Mapping[str, Any],
    here: Mapping[str, Any],
    argv: Sequence[str],
) -> dict[str, Any]:
    """Return what `study.json` says about a study that is about to start.

    Args:
        study: the declaration of its file.
        opts: the options.
        planned: its trials.
        data: what `Data.prepare` returned.
        here: what `surroundings` returned.
        argv: the command line's words.
    """
    searched = study.search.space if opts.search and study.search is not None else ()
    rules = options.stopping(study, opts)
    early = rules.scheduler != "none" or rules.patience
    epochs = max(epochs_of(p.config) for p in planned.trials)
    asked = {
        "study": study.name,
        "question": study.question,
        "scale": opts.chosen_scale(),
        "parts": list(dict.fromkeys(p.part for p in planned.trials)),
        "notes": list(planned.notes),
        "grid": dict(planned.grid),
        "constants": _constants(planned.trials, searched),
        "metric": study.metric,
        "mode": study.mode,
        "trials": [p.record() for p in planned.trials],
        "data": data,
        "command": ["python", f"studies/{study.name}.py", *argv],
    }
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    found = {"git": provenance.git(), "versions": provenance.versions()}
    found |= {"hardware": here["hardware"], "numerics": here["numerics"], "started": started}
    return finite(({"stopping": rules.record(epochs)} if early else {}) | asked | found)


def surroundings(threads: int) -> dict[str, Any]:
    """Return what this machine offers to trials of so many threads, and says of its digits."""
    from core import numerics  # brings torch

    found = numerics.fingerprint(threads)
    return {
        "hardware": provenance.hardware(),
        "numerics": found.record(),
        "digits": found.sentence(),
        "digits on GPUs": found.sentence(on_gpus=True),
        "machine": slots.this_machine(),
    }


def resumed(declared: dict[str, Any], recorded: dict[str, Any]) -> dict[str, Any]:
    """Return the recorded declaration, once it is clear that it is the one now asked for.

    Raises UserError: the study has changed; the differences are listed.
    """
    whole = recorded
    if "search" in recorded:  # what was proposed since the start is no change
        recorded = recorded | {"trials": recorded["trials"][: len(declared["trials"])]}
    changed = [key for key in IDENTITY if declared.get(key) != recorded.get(key)]
    now, before = (d.get("data", {}).get("fingerprint") for d in (declared, recorded))
    if not changed and now == before:
        again = {key: declared[key] for key in ("git", "versions", "numerics")}
        return {**whole, "resumed": [*recorded.get("resumed", []), again]}
    lines = difference(recorded, declared)
    lines += [f"data: {before} -> {now}"] if now != before else []
    rest = [f"and {len(lines) - 8} more"] if len(lines) > 8 else []
    raise UserError(
        f"--resume: the study has changed since it was started ({'; '.join(lines[:8] + rest)}):"
        " give the same options again, or a new --name"
    )


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return one short text per setting in which two declarations differ."""
    pairs = [(key, old, new) for key in ("study", "scale", "metric", "mode", "stopping")]
    for kind in ("grid", "constants"):
        before, after = old.get(kind, {}), new[kind]
        pairs += [(key, before, after) for key in dict.fromkeys([*before, *after])]
    told = [f"{k}: {a.get(k)} -> {b.get(k)}" for k, a, b in pairs if a.get(k) != b.get(k)]
    return told or ["its trials differ"]


def _constants(trials: Sequence[Planned], searched: Iterable[str] = ()) -> dict[str, Any]:
    """Return the settings that all trials share; of a search those that it does not vary."""
    first, varied = trials[0].config, {*searched, *(["seed", "holdout"] if searched else [])}
    same = (k for k, v in first.items() if all(p.config[k] == v for p in trials))
    return {k: first[k] for k in same if k not in varied}


def epochs_of(config: Mapping[str, Any]) -> int:
    """Return how many epochs a config asks for."""
    return int(config.get("epochs", 1))
