"""From a study's declaration and a command line to a finished result folder.

The result folder is the truth: each trial records its rows, checkpoints and end there, whole or
not at all. Ray Tune schedules what has no recorded end; nothing is read back from Tune's own
files, which are written in place, restore an old search space without a word and cannot tell an
interrupted study from a finished one.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from core import numerics
from core.cluster.address import check_address
from core.cluster.slots import too_small
from core.cluster.work import Work
from core.errors import UserError
from core.storage import lock, mirror
from core.storage.files import read_json, remove, write_json
from core.study import collect, options, tensorboard
from core.study.declaration import declaration, epochs_of, resumed
from core.study.declare import Study
from core.study.folder import check_folder, chosen_settings, have_ended, is_final, private_settings
from core.study.options import Options
from core.study.plan import Plan, Planned, plan, trial_name
from core.study.progress import Progress
from core.study.search import DEFAULT, Goal, Search
from core.trial import records, running
from core.trial.stopping import Halving

HOLDOUT = 0.1  # share of the training images that a search is scored on
FINISHED, SOME_FAILED = 0, 1
REPORTED_NOTE = (
    "the search is done: its best and the default settings are trained on all training images and"
    " scored on the validation images"
)


def run(study: Study, opts: Options, argv: Sequence[str] = ()) -> int:
    """Run, resume or report `study`; return 0 if every trial finished, 1 if some failed.

    Raises:
        UserError: options, data, folder or cluster cannot be used; nothing was started.
        KeyboardInterrupt: the user stopped the study; every finished epoch is on disk.
    """
    remote = opts.remote(study)
    if remote is None:
        return _run_here(study, opts, argv, opts.folder(study))
    remote.check(f"{os.uname().nodename}-{os.getpid()}")
    # A report may be wanted while the study runs: its folder is not touched then.
    with remote.copied() if opts.report_only else lock.only_user(remote) as used:
        mirror.attach(used)
        try:
            used.pull()
            before = used.contents()
            code = _run_here(study, opts, argv, used.local)
            used.push_tree(before, without=("trials", "ray"))
            return code
        finally:
            mirror.detach(used)


def _run_here(study: Study, opts: Options, argv: Sequence[str], folder: Path) -> int:
    if opts.report_only:
        return report_only(study, folder)
    options.stopping(study, opts)  # refuses rules that do not fit before data are looked at
    settings = chosen_settings(study, opts)
    planned = plan(study, opts.chosen_scale(), opts.part, opts.seeds, settings)
    if opts.search is not None:
        planned = search_plan(study, planned, settings)
    elif settings.get("holdout"):
        raise UserError(
            f"--set holdout={settings['holdout']}: only --search holds training images out; trials"
            " that are compared are scored on the validation images"
        )
    check_folder(folder, resume=opts.resume)
    if opts.address is not None:
        check_address(opts.address)
    private = private_settings(study, opts, settings)
    data = study.prepare({**planned.trials[0].config, **private})
    for note in data.get("notes", []):
        print(note)
    if opts.resume:  # what was settled before the first trial stays
        recorded = read_json(folder / "study.json").get("data", {}).get("settled", {})
        data |= {"settled": {k: recorded.get(k, v) for k, v in data.get("settled", {}).items()}}
    planned = planned.settled(data.get("settled", {}))
    if study.check is not None:
        study.check([p.config for p in planned.trials], data)
    declared = declaration(study, opts, planned, data, argv)
    folder.mkdir(parents=True, exist_ok=True)
    slots: list[dict[str, Any]] = []  # filled in when the nodes are known
    with lock.only_driver(folder, lambda: slots) as beat:
        return _run_locked(study, opts, planned, private, declared, folder, slots, beat)


def _run_locked(
    study: Study,
    opts: Options,
    planned: Plan,
    private: Mapping[str, Any],
    declared: dict[str, Any],
    folder: Path,
    slots: list[dict[str, Any]],
    beat: Callable[[], None],
) -> int:
    if opts.resume:
        declared = resumed(declared, read_json(folder / "study.json"))
    start = time.monotonic()
    search, chosen = None, []
    if opts.search is not None:
        search = make_search(study, opts, planned, folder, declared)
        declared["search"] = search.record()
        planned = dataclasses.replace(planned, trials=[*planned.trials, *search.known()])
        if len(planned.trials) > opts.trials and have_ended(folder, planned.trials):
            chosen = reported(planned, search)
        declared["trials"] = [p.record() for p in (*planned.trials, *chosen)]
    complete = search is None or len(planned.trials) > opts.trials
    if complete and have_ended(folder, [*planned.trials, *chosen]):
        write_json(folder / "study.json", declared)
    else:
        runner = _runner(opts)
        paths = tuple(str(v) for v in private.values() if isinstance(v, str) and os.path.isabs(v))
        with runner.session(opts, folder, paths) as nodes:  # no cluster: nothing is left behind
            slots[:] = nodes.record()
            beat()
            declared["slots"] = {"memory": nodes.memory, "cores": opts.slot_cores, "nodes": slots}
            if study.fit is not None:
                declared["fit"] = lay_out(study, planned, declared, nodes, opts.resume)
            write_json(folder / "study.json", declared)
            # For who looks at the images again; not in study.json, from which reports are made.
            write_json(folder / ".private.json", private)
            run_trials(study, opts, planned, private, declared, runner.run, nodes, folder, search)
            if search is not None and (chosen := reported(planned, search)):
                searched = [*planned.trials[:1], *search.known()]
                declared["trials"] = [p.record() for p in (*searched, *chosen)]
                write_json(folder / "study.json", declared)
                last = Plan(chosen, planned.grid, [REPORTED_NOTE])
                run_trials(study, opts, last, private, declared, runner.run, nodes, folder)
    declared["seconds"] = declared.get("seconds", 0.0) + time.monotonic() - start
    write_json(folder / "study.json", declared)
    trials = collect.collect(folder, study.metric, study.mode)
    if search is not None:
        search.write()
    return finish(study, folder, trials)


def lay_out(
    study: Study, planned: Plan, declared: Mapping[str, Any], nodes: Any, resume: bool
) -> dict[str, Any]:
    """Choose, before the first trial, what all trials take over so that each fits its slot.

    Once chosen it stays: trials of one comparison are not to differ by where and when they ran.

    Returns:
        What `study.json` keeps: the settings, the bytes that the largest trial then needs, and the
        smallest slot; without a limit of memory, no settings and neither number.

    Raises:
        UserError: a trial fits in no way, or not in the way that was chosen at the start.
    """
    assert study.fit is not None
    configs, data = [p.config for p in planned.trials], declared["data"]
    offered = [s for s in nodes.slots if s.count and s.memory is not None]
    chosen: dict[str, Any] | None = declared.get("fit", {"settings": {}}) if resume else None
    if not offered:
        return chosen or {"settings": {}}
    slot = min(s.memory for s in offered)
    if chosen is None:
        settings, needs = study.fit(configs, data, slot, all(s.bfloat16 for s in offered))
        chosen = {"settings": settings, "needs": needs, "slot": slot}
    elif "needs" not in chosen:  # begun where nothing was limited
        chosen = {**chosen, "needs": study.fit(configs, data, None, True)[1], "slot": slot}
    reason = too_small(offered, chosen["needs"])
    if reason:
        raise UserError(f"--resume: {reason}, or start anew under another --name")
    nodes.least = chosen["needs"]
    return chosen


def run_trials(
    study: Study,
    opts: Options,
    planned: Plan,
    private: Mapping[str, Any],
    declared: dict[str, Any],
    run_pending: Callable[..., None],
    nodes: Any,
    folder: Path,
    search: Search | None = None,
) -> None:
    """Run the trials of a plan that have not ended, on the slots of `nodes`."""
    remote = mirror.of(folder / "study.json")
    rules = options.stopping(study, opts if search is not None else options.compared(opts))
    metric = planned.trials[0].metric or study.metric

    def spec_of(p: Planned) -> running.Spec:
        return running.Spec(
            p.trial, p.config, private, folder, metric, study.mode, remote, rules.patience,
            declared.get("fit", {}).get("settings", {}),
        )  # fmt: skip

    def propose() -> running.Spec | None:
        assert search is not None
        p = search.propose()
        if p is None:
            return None
        declared["trials"].append(p.record())
        declared["search"] = search.record()
        write_json(folder / "study.json", declared)
        return spec_of(p)

    specs = [spec_of(p) for p in planned.trials]
    pending = [spec for spec in specs if not is_final(spec.folder)]
    for spec in pending:
        for left in ("result.json", "attempt.json"):  # of an earlier run
            remove(spec.folder / left)
    halving = None
    if rules.scheduler == "asha":
        halving = Halving(rules, metric, study.mode, max(epochs_of(s.config) for s in specs))
        for spec in specs:
            halving.recall(spec.name, records.read_rows(spec.folder))
    for note in planned.notes:
        print(note)
    total = len(specs) if search is None else opts.trials + 1
    with Progress(total, len(specs) - len(pending), metric, study.mode) as progress:
        nodes.announce = progress.announce
        progress.announce(f"{study.name}: {nodes.sentence()}; {_counts(specs, pending, total)}")
        on_gpus = any(slot["gpu"] for slot in nodes.record())
        progress.announce(numerics.fingerprint(opts.slot_cores).sentence(on_gpus))
        for spec in specs if opts.resume else []:
            progress.recall(spec.name, records.read_rows(spec.folder))
        curves = tensorboard.Live(folder, declared, records.read_rows, progress.announce)
        listeners = [progress, curves, *([search] if search else [])]
        work = Work(pending, propose if search else None)
        for spec in specs:
            work.specs.setdefault(spec.name, spec)
        run_pending(study, work, nodes, listeners, opts, halving)


def search_plan(study: Study, planned: Plan, settings: Mapping[str, Any]) -> Plan:
    """Return the plan of a search: the settings as they are, once, and then what is proposed.

    Where the trainable can hold images out, a search is scored on a part of the training images:
    what chooses settings is not what they are reported on.

    Args:
        study: the declaration.
        planned: the plan of the study's grid; its first trial has the settings as they are.
        settings: what the user set.

    Raises:
        UserError: the study has nothing to search, or is to search on the reported images.
    """
    if not study.search:
        raise UserError(f"--search: {study.name} names no settings to search: run its grid")
    config, metric = dict(planned.trials[0].config), ""
    if "holdout" in config:
        config["holdout"] = settings.get("holdout", HOLDOUT)
        if not config["holdout"]:
            raise UserError(
                "--set holdout=0: a search is never scored on the validation images: give the share"
                f" of the training images that it is scored on, such as {HOLDOUT}"
            )
        metric = f"heldout_{study.metric.removeprefix('val_')}"
    seeded = planned.trials if metric else planned.trials[:1]
    seeds = dict.fromkeys(p.config["seed"] for p in seeded if "seed" in p.config)
    grid = {"seed": list(seeds)} if seeds else {}
    return Plan([Planned(DEFAULT, "search", config, metric)], grid, planned.notes)


def make_search(
    study: Study, opts: Options, planned: Plan, folder: Path, declared: Mapping[str, Any]
) -> Search:
    """Open the search of a result folder, with what a declaration of it says was proposed."""
    first = planned.trials[0]
    goal = Goal(study.search, opts.trials, first.metric or study.metric, study.mode)
    uninformed = declared.get("search", {}).get("uninformed", ())
    check, proposed = study.config, declared["trials"]
    return Search(goal, first.config, folder, check, proposed, uninformed, first.metric)


def reported(planned: Plan, search: Search) -> list[Planned]:
    """Return the trials by which a search's outcome is reported: the default and the best.

    Both are trained on all training images, over the study's seeds, and scored on the validation
    images, which no trial of the search has seen. None where the search saw them, or found nothing.
    """
    best = search.best()
    if "holdout" not in search.config or best is None:
        return []
    found = {name: best.config[name] for name in search.space}
    return [
        Planned(
            trial_name({"reported": p.trial} | seed),
            f"reported-{kind}",
            {**search.config, "holdout": 0.0, **settings, **seed},
        )
        for kind, p, settings in (("default", planned.trials[0], {}), ("best", best, found))
        for seed in ([{"seed": seed} for seed in planned.grid.get("seed", ())] or [{}])
    ]


def finish(study: Study, folder: Path, trials: Sequence[Mapping[str, Any]]) -> int:
    """Write the report of a result folder, say where it is, and return the exit code."""
    searched = "search" in read_json(folder / "study.json")
    write = study.search_report if searched and study.search_report is not None else study.report
    write(folder)
    failed = [t for t in trials if t["state"] not in ("finished", "stopped")]
    remote = mirror.of(folder / "report.html")
    where = os.path.relpath(folder) if remote is None else remote.shown
    shown = f"{where}/report.html"
    print(
        f"report: {shown}" + (f" ({len(failed)} of {len(trials)} trials failed)" if failed else "")
    )
    return SOME_FAILED if failed else FINISHED


def report_only(study: Study, folder: Path) -> int:
    """Rebuild the report from the files in `folder`; trials that never ended count as failed."""
    if not (folder / "study.json").is_file():
        raise UserError(f"no study at {mirror.shown(folder)}: check --results-dir and --name")
    if (folder / "trials").is_dir():
        trials = collect.collect(folder, study.metric, study.mode)
    else:
        trials = collect.read(folder)
    return finish(study, folder, trials)


def _runner(opts: Options) -> ModuleType:
    """Return the module that runs trials: its `session(opts, ...)` and `run(study, ...)`."""
    if opts.local:
        from core.cluster import local

        return local
    from core.cluster import tune  # only here, so that --local needs no Ray

    return tune


def _counts(specs: Sequence[Any], pending: Sequence[Any], total: int) -> str:
    done = len(specs) - len(pending)
    started = sum((spec.folder / "history.json").is_file() for spec in pending)
    if not done and not started:
        return f"{total} trials"
    return f"resuming: {done} done, {started} continue, {total - done - started} to do"
