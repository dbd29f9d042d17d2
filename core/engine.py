"""From a study's declaration and a command line to a finished result folder.

The result folder is the truth: each trial records its rows, checkpoints and end there, whole or
not at all. Ray Tune schedules what has no recorded end; nothing is read back from Tune's own
files, which are written in place, restore an old search space without a word and cannot tell an
interrupted study from a finished one.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from core import (
    collect,
    events,
    instruction_set,
    mirror,
    numerics,
    options,
    presence,
    provenance,
    trial,
)
from core.errors import UserError
from core.options import Options
from core.progress import Progress, patient_output
from core.search import DEFAULT, Goal, Search
from core.slots import too_small
from core.stopping import Halving
from core.storage import finite, read_json, remove, write_json
from core.study import Plan, Planned, Study, plan, trial_name
from core.work import Work

FINISHED, SOME_FAILED, UNUSABLE, INTERRUPTED = 0, 1, 2, 130
ANSWER = 20.0  # seconds for a cluster to greet
RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h: try again later
IDENTITY = ("study", "scale", "grid", "metric", "mode", "trials", "stopping")
HOLDOUT = 0.1  # share of the training images that a search is scored on
REPORTED_NOTE = (
    "the search is done: its best and the default settings are trained on all training images and"
    " scored on the validation images"
)
FINAL = ("finished", "stopped", "diverged")  # never run again; "failed" is tried again on resume


def command_line(study: Study, argv: Sequence[str]) -> int:
    """Run `study` as `argv` says; return the exit code (see docs/studies.md)."""
    received = []

    def terminate(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)  # the second one ends the process at once
        raise KeyboardInterrupt

    # A batch system's time limit, a closed terminal; ignored ones stay so, as under `nohup`.
    both = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    previous = {number: before for number, before in both.items() if before is not signal.SIG_IGN}
    for number in previous:
        signal.signal(number, terminate)
    with patient_output():
        try:
            instruction_set.check()
            action, words = options.take_action(study, argv)
            opts = options.parse(study, words)
            return _act(study, opts, action) if action else run(study, opts, argv)
        except UserError as e:
            print(e, file=sys.stderr)
            return UNUSABLE
        except KeyboardInterrupt:
            again = shlex.join([f"studies/{study.name}.py", *argv])
            again += "" if "--resume" in argv else " --resume"
            print(
                f"\nstopped: nothing finished is lost; go on with: python {again}", file=sys.stderr
            )
            return RESUMABLE if received else INTERRUPTED
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


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
    with remote.copied() if opts.report_only else presence.only_user(remote) as used:
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
    settings = _settings(study, opts)
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
    private = _private(study, opts, settings)
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
    with presence.only_driver(folder, lambda: slots) as beat:
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

    def spec_of(p: Planned) -> trial.Spec:
        return trial.Spec(
            p.trial, p.config, private, folder, metric, study.mode, remote, rules.patience,
            declared.get("fit", {}).get("settings", {}),
        )  # fmt: skip

    def propose() -> trial.Spec | None:
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
        halving = Halving(rules, metric, study.mode, max(_epochs(s.config) for s in specs))
        for spec in specs:
            halving.recall(spec.name, trial.read_rows(spec.folder))
    for note in planned.notes:
        print(note)
    total = len(specs) if search is None else opts.trials + 1
    with Progress(total, len(specs) - len(pending), metric, study.mode) as progress:
        nodes.announce = progress.announce
        progress.announce(f"{study.name}: {nodes.sentence()}; {_counts(specs, pending, total)}")
        on_gpus = any(slot["gpu"] for slot in nodes.record())
        progress.announce(numerics.fingerprint(opts.slot_cores).sentence(on_gpus))
        for spec in specs if opts.resume else []:
            progress.recall(spec.name, trial.read_rows(spec.folder))
        curves = events.Live(folder, declared, trial.read_rows, progress.announce)
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


def declaration(
    study: Study, opts: Options, planned: Plan, data: dict[str, Any], argv: Sequence[str]
) -> dict[str, Any]:
    """Return what `study.json` says about a study that is about to start."""
    rules = options.stopping(study, opts)
    early = rules.scheduler != "none" or rules.patience
    epochs = max(_epochs(p.config) for p in planned.trials)
    return finite(
        ({"stopping": rules.record(epochs)} if early else {})
        | {
            "study": study.name,
            "question": study.question,
            "scale": opts.chosen_scale(),
            "parts": list(dict.fromkeys(p.part for p in planned.trials)),
            "notes": list(planned.notes),
            "grid": dict(planned.grid),
            "constants": _constants(planned.trials, study.search if opts.search else ()),
            "metric": study.metric,
            "mode": study.mode,
            "trials": [p.record() for p in planned.trials],
            "data": data,
            "command": ["python", f"studies/{study.name}.py", *argv],
            "git": provenance.git(),
            "versions": provenance.versions(),
            "hardware": provenance.hardware(),
            "numerics": numerics.fingerprint(opts.slot_cores).record(),
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
    )


def resumed(declared: dict[str, Any], recorded: dict[str, Any]) -> dict[str, Any]:
    """Return the recorded declaration, once it is clear that it is the one now asked for.

    Raises:
        UserError: the study has changed; the differences are listed.
    """
    whole = recorded
    if "search" in recorded:  # what was proposed since the start is no change
        recorded = recorded | {"trials": recorded["trials"][: len(declared["trials"])]}
    changed = [key for key in IDENTITY if declared.get(key) != recorded.get(key)]
    fingerprints = [d.get("data", {}).get("fingerprint") for d in (declared, recorded)]
    if not changed and fingerprints[0] == fingerprints[1]:
        again = {key: declared[key] for key in ("git", "versions", "numerics")}
        return {**whole, "resumed": [*recorded.get("resumed", []), again]}
    lines = difference(recorded, declared)
    if fingerprints[0] != fingerprints[1]:
        lines.append(f"data: {fingerprints[1]} -> {fingerprints[0]}")
    raise UserError(
        "--resume: the study has changed since it was started ("
        + "; ".join(lines[:8])
        + (f"; and {len(lines) - 8} more" if len(lines) > 8 else "")
        + "): give the same options again, or a new --name"
    )


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return one short text per setting in which two declarations differ."""
    lines = [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in ("study", "scale", "metric", "mode", "stopping")
        if old.get(key) != new.get(key)
    ]
    for kind in ("grid", "constants"):
        before, after = old.get(kind, {}), new[kind]
        for key in dict.fromkeys([*before, *after]):
            if before.get(key) != after.get(key):
                lines.append(f"{key}: {before.get(key)} -> {after.get(key)}")
    return lines or ["its trials differ"]


def check_folder(folder: Path, *, resume: bool) -> None:
    """Refuse a folder that cannot be written, an existing study, or nothing to resume.

    Raises:
        UserError: see above.
    """
    try:
        exists = (folder / "study.json").is_file()
    except OSError as e:
        raise UserError(f"cannot look into {folder} ({e.strerror}): choose another place") from e
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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()  # nothing is left behind should the data turn out unusable
    except OSError as e:
        raise UserError(
            f"cannot write to {folder} ({e.strerror}): choose another --results-dir"
        ) from e


def check_address(address: str) -> None:
    """Refuse an address at which no Ray answers (Ray itself would wait for minutes).

    Raises:
        UserError: malformed, no connection within 5 seconds or no answer within `ANSWER`.
    """
    shown = f"--address {address}"
    if address == "auto":
        named = os.environ.get("RAY_ADDRESS")
        shown += f" with RAY_ADDRESS={named}" if named else ""
        address = named or _cluster_here()
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise UserError(f"{shown}: give auto or HOST:PORT, the address that `ray start` prints")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5) as link:
            _greet(link)
    except (OSError, OverflowError) as e:
        other = "unset RAY_ADDRESS" if "RAY_ADDRESS" in shown else "leave --address out"
        raise UserError(
            f"{shown}: no Ray cluster answers there; start one with `ray up cluster.yaml`, or"
            f" {other}"
        ) from e


def _greet(link: socket.socket) -> None:
    """Raise OSError unless HTTP/2, which Ray speaks, is spoken at the other end (RFC 9113, 3.4)."""
    if os.environ.get("RAY_USE_TLS", "0") != "0":
        return
    link.settimeout(ANSWER)
    link.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
    if link.recv(9)[3:4] != b"\4":  # a frame of settings, as ours
        raise ConnectionError("not Ray")


def _cluster_here() -> str:
    """Return the address of the cluster that Ray finds on this machine.

    Raises:
        UserError: there is none.
    """
    from ray._private.services import canonicalize_bootstrap_address

    try:
        return canonicalize_bootstrap_address("auto") or ""
    except ConnectionError as e:
        raise UserError(
            "--address auto: no Ray cluster runs on this machine; start one with `ray up"
            " cluster.yaml`, give HOST:PORT, or leave --address out"
        ) from e


def have_ended(folder: Path, trials: Sequence[Planned]) -> bool:
    """Return whether all these trials have ended in a way that is not tried again."""
    return all(is_final(folder / "trials" / p.trial) for p in trials)


def is_final(folder: Path) -> bool:
    """Return whether the trial in `folder` has ended in a way that is not tried again."""
    result = trial.read_result(folder)
    return result is not None and result["state"] in FINAL


def _runner(opts: Options) -> ModuleType:
    """Return the module that runs trials: its `session(opts, ...)` and `run(study, ...)`."""
    if opts.local:
        from core import local_runner

        return local_runner
    from core import ray_runner  # only here, so that --local needs no Ray

    return ray_runner


def _settings(study: Study, opts: Options) -> dict[str, Any]:
    """Return what the user set, with what follows from it."""
    settings = options.read_config(study, opts.config) if opts.config else {}
    settings |= options.parse_settings(study, opts.set)
    if study.adjust is not None:
        settings = {**study.adjust(settings, opts.chosen_scale()), **settings}
    return settings


def _act(study: Study, opts: Options, action: str) -> int:
    """Do something else than run the study."""
    settings = options.parse_settings(study, opts.set)
    private = {k: v for k, v in _private(study, opts, settings).items() if v not in (None, False)}
    return study.actions[action]({**settings, **private}, opts.folder(study))


def _private(study: Study, opts: Options, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the study's settings that say where things are on this machine."""
    given = {
        "data_dir": None if opts.data_dir is None else str(opts.data_dir.expanduser().resolve()),
        "skip_broken": opts.skip_broken,
    }
    given |= {key: _located(settings[key]) for key in study.private if key in settings}
    known = {field.name for field in dataclasses.fields(study.config)}
    return {key: value for key, value in given.items() if key in known}


def _located(value: Any) -> Any:
    """Return a path that exists as an absolute one: workers run in folders of their own."""
    if not isinstance(value, str) or not Path(value).expanduser().exists():
        return value
    return str(Path(value).expanduser().resolve())


def _constants(trials: Sequence[Planned], searched: Iterable[str] = ()) -> dict[str, Any]:
    """Return the settings that all trials share; of a search those that it does not vary."""
    first, varied = trials[0].config, {*searched, *(["seed", "holdout"] if searched else [])}
    same = (k for k, v in first.items() if all(p.config[k] == v for p in trials))
    return {k: first[k] for k in same if k not in varied}


def _epochs(config: Mapping[str, Any]) -> int:
    return int(config.get("epochs", 1))


def _counts(specs: Sequence[Any], pending: Sequence[Any], total: int) -> str:
    done = len(specs) - len(pending)
    started = sum((spec.folder / "history.json").is_file() for spec in pending)
    if not done and not started:
        return f"{total} trials"
    return f"resuming: {done} done, {started} continue, {total - done - started} to do"
