"""From a study's declaration and a command line to a finished result folder.

The result folder is the truth: each trial records its rows, checkpoints and end there, whole or
not at all. Ray Tune schedules what has no recorded end; nothing is read back from Tune's own
files, which are written in place, restore an old search space without a word and cannot tell an
interrupted study from a finished one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.cluster.address import check_address
from core.cluster.slots import parse_memory, too_small
from core.cluster.work import Decide, Work
from core.errors import UserError
from core.storage import lock, mirror
from core.storage.files import read_json, remove, write_json
from core.study import collect, options, tensorboard
from core.study.apart import Apart, Here
from core.study.declaration import declaration, epochs_of, resumed, surroundings
from core.study.declare import Study
from core.study.folder import check_folder, chosen_settings, is_final, private_settings
from core.study.options import Options
from core.study.plan import Plan, Planned, plan
from core.study.progress import Progress
from core.study.search import REPORTED_NOTE, Proposer, reported, search_plan
from core.trial import records
from core.trial.running import Spec
from core.trial.stopping import Stopping

FINISHED, SOME_FAILED = 0, 1


def run(study: Study, opts: Options, argv: Sequence[str] = ()) -> int:
    """Run, resume or report `study`; return 0 if every trial finished, 1 if some failed.

    Raises UserError: options, data, folder or cluster cannot be used; nothing was started;
    KeyboardInterrupt: the user stopped the study; every finished epoch is on disk.
    """
    remote = opts.remote(study)
    if remote is None:
        return _run_in(opts.folder(study), study, opts, argv)
    remote.check(f"{os.uname().nodename}-{os.getpid()}")
    # A report may be wanted while the study runs: its folder is not touched then.
    with remote.copied() if opts.report_only else lock.only_user(remote) as used:
        mirror.attach(used)
        try:
            used.pull()
            before = used.contents()
            code = _run_in(used.local, study, opts, argv)
            used.push_tree(before, without=("trials", "ray"))
            return code
        finally:
            mirror.detach(used)


def _run_in(folder: Path, study: Study, opts: Options, argv: Sequence[str]) -> int:
    if opts.report_only:
        return report_only(study, folder)
    return Run(study, opts, folder, argv).go()


class Run:
    """A study under the options of one command, on its way to a finished result folder.

    Raises UserError: options that do not fit the study.

    Attributes:
        planned: the trials that are known; a search adds to them.
        private: settings that say where things are on this machine.
        here: what this machine computes with and offers (`surroundings`).
        declared: what `study.json` says, or is about to.
        slots: of every node, once they are known.
        search: proposes further trials.
        last: trials by which the outcome of a search is reported.
    """

    def __init__(self, study: Study, opts: Options, folder: Path, argv: Sequence[str]):
        self.study, self.opts, self.folder, self.argv = study, opts, folder, argv
        options.stopping(study, opts)  # refuses rules that do not fit before data are looked at
        settings = chosen_settings(study, opts)
        self.planned = plan(study, opts.chosen_scale(), opts.part, opts.seeds, settings)
        if opts.search is not None:
            self.planned = search_plan(study, self.planned, settings)
        elif settings.get("holdout"):
            raise UserError(
                f"--set holdout={settings['holdout']}: only --search holds training images out;"
                " trials that are compared are scored on the validation images"
            )
        self.private = private_settings(study, opts, settings)
        self.here: dict[str, Any] = {}
        self.declared: dict[str, Any] = {}
        self.slots: list[dict[str, Any]] = []
        self.search: Proposer | None = None
        self.last: list[Planned] = []

    def go(self) -> int:
        """Run what has not ended, write tables and report, and return the exit code."""
        check_folder(self.folder, resume=self.opts.resume)
        if self.opts.address is not None:
            check_address(self.opts.address)
        with contextlib.closing(Here() if self.opts.local else Apart()) as apart:
            self.prepare(apart)
            self.folder.mkdir(parents=True, exist_ok=True)
            with lock.only_driver(self.folder, lambda: self.slots) as beat:
                return self.go_on(apart, beat)

    def go_on(self, apart: Here | Apart, beat: Callable[[], None]) -> int:
        """Do the same as the one driver of the folder, once the data are prepared."""
        if self.opts.resume:
            self.declared = resumed(self.declared, read_json(self.folder / "study.json"))
        start = time.monotonic()
        if self.opts.search is not None:
            self.open_search()
        if not self.has_ended():
            self.run(apart, beat)
        self.declared["seconds"] = self.declared.get("seconds", 0.0) + time.monotonic() - start
        self.write()
        trials = collect.collect(self.folder, self.study.metric, self.study.mode)
        if self.search is not None:
            self.search.write()
        return finish(self.study, self.folder, trials)

    def prepare(self, apart: Here | Apart) -> None:
        """Have the data prepared and the trials checked against them, and declare the study."""
        study = self.study
        data = apart(study.data.prepare, {**self.planned.trials[0].config, **self.private})
        for note in data.get("notes", []):
            print(note)
        if self.opts.resume:  # what was settled before the first trial stays
            recorded = read_json(self.folder / "study.json").get("data", {}).get("settled", {})
            data |= {"settled": {k: recorded.get(k, v) for k, v in data.get("settled", {}).items()}}
        self.planned = self.planned.settled(data.get("settled", {}))
        if study.data.check is not None:
            apart(study.data.check, [p.config for p in self.planned.trials], data)
        self.here = apart(surroundings, self.opts.slot_cores)
        self.declared = declaration(study, self.opts, self.planned, data, self.here, self.argv)

    def open_search(self) -> None:
        """Add what a search has proposed so far, and what reports its outcome if that is known."""
        first, most = self.planned.trials[0], self.opts.trials
        self.search = Proposer(self.study, most, first, self.folder, self.declared)
        self.declared["search"] = self.search.record()
        self.planned = dataclasses.replace(self.planned, trials=[first, *self.search.known()])
        if self.has_ended():
            self.last = reported(self.planned, self.search)
        self.declared["trials"] = [p.record() for p in (*self.planned.trials, *self.last)]

    def has_ended(self) -> bool:
        """Return whether every trial has ended and no more will be proposed."""
        if self.search is not None and len(self.planned.trials) <= self.opts.trials:
            return False
        known = [*self.planned.trials, *self.last]
        return all(is_final(self.folder / "trials" / p.trial) for p in known)

    def write(self) -> None:
        """Write `study.json`."""
        write_json(self.folder / "study.json", self.declared)

    def run(self, apart: Here | Apart, beat: Callable[[], None]) -> None:
        """Run the trials that have not ended, where there are slots."""
        with self.session() as (nodes, run_all):  # no cluster: nothing is left behind
            self.slots[:] = nodes.record()
            beat()
            cores = self.opts.slot_cores
            self.declared["slots"] = {"memory": nodes.memory, "cores": cores, "nodes": self.slots}
            if self.study.data.fit is not None:
                self.declared["fit"] = self.lay_out(apart, nodes)
            apart.close()  # its memory is the trials' now
            self.write()
            # For who looks at the images again; not in study.json, from which reports are made.
            write_json(self.folder / ".private.json", self.private)
            self.run_trials(self.planned, nodes, run_all, self.search)
            if self.search is not None and (last := reported(self.planned, self.search)):
                searched = [*self.planned.trials[:1], *self.search.known()]
                self.declared["trials"] = [p.record() for p in (*searched, *last)]
                self.write()
                self.run_trials(Plan(last, self.planned.grid, [REPORTED_NOTE]), nodes, run_all)

    @contextlib.contextmanager
    def session(self) -> Iterator[tuple[Any, Callable[..., None]]]:
        """Yield the nodes that have slots, and what runs trials there."""
        opts, here, errand = self.opts, self.here["machine"], None
        size = parse_memory(opts.slot_memory), opts.slot_cores, opts.slot_memory
        if opts.local:
            from core.cluster import local

            yield local.One(*size, here), local.run
            return
        from core.cluster import fleet, session, tune  # only here, so that --local needs no Ray

        if opts.address is not None:
            texts = (v for v in self.private.values() if isinstance(v, str))
            remote, digits = mirror.of(self.folder / "study.json"), self.here["numerics"]["groups"]
            errand = fleet.Errand(
                self.folder, remote, secrets.token_hex(8), digits,
                tuple(text for text in texts if os.path.isabs(text)), opts.slot_cores,
            )  # fmt: skip
        nodes = fleet.Fleet(*size, opts.max_concurrent, here, errand)
        with session.session(nodes, opts.address):
            yield nodes, functools.partial(tune.run, retries=opts.max_retries)

    def lay_out(self, apart: Here | Apart, nodes: Any) -> dict[str, Any]:
        """Choose, before the first trial, what all trials take over so that each fits its slot.

        Once chosen it stays: trials of one comparison are not to differ by where and when they ran.
        Raises UserError: a trial fits in no way, or not in the way that was chosen at the start.

        Returns:
            What `study.json` keeps: the settings, the bytes that the largest trial then needs, and
            the smallest slot; without a limit of memory, no settings and neither number.
        """
        asked = [p.config for p in self.planned.trials], self.declared["data"]
        fit = functools.partial(apart, self.study.data.fit, *asked)
        offered = [s for s in nodes.slots if s.count and s.memory is not None]
        chosen = self.declared.get("fit", {"settings": {}}) if self.opts.resume else None
        if not offered:
            return chosen or {"settings": {}}
        slot = min(s.memory for s in offered)
        if chosen is None:
            settings, needs = fit(slot, all(s.bfloat16 for s in offered))
            chosen = {"settings": settings, "needs": needs, "slot": slot}
        elif "needs" not in chosen:  # begun where nothing was limited
            chosen = {**chosen, "needs": fit(None, True)[1], "slot": slot}
        reason = too_small(offered, chosen["needs"])
        if reason:
            raise UserError(f"--resume: {reason}, or start anew under another --name")
        nodes.least = chosen["needs"]
        return chosen

    def run_trials(
        self,
        planned: Plan,
        nodes: Any,
        run_all: Callable[..., None],
        search: Proposer | None = None,
    ) -> None:
        """Run the trials of a plan that have not ended, on the slots of `nodes`."""
        opts, mode = self.opts, self.study.mode
        rules = options.stopping(self.study, opts if search is not None else options.compared(opts))
        metric = planned.trials[0].metric or self.study.metric
        spec_of = functools.partial(self.spec_of, metric=metric, patience=rules.patience)
        specs = [spec_of(p) for p in planned.trials]
        pending = [spec for spec in specs if not is_final(spec.folder)]
        for spec in pending:
            for left in ("result.json", "attempt.json"):  # of an earlier run
                remove(spec.folder / left)
        decide = _decide(rules, metric, mode, specs)
        for note in planned.notes:
            print(note)
        total = len(specs) if search is None else opts.trials + 1
        with Progress(total, len(specs) - len(pending), metric, mode) as progress:
            nodes.announce = progress.announce
            begins = f"{self.study.name}: {nodes.sentence()}"
            progress.announce(f"{begins}; {_counts(specs, pending, total)}")
            on_gpus = any(slot["gpu"] for slot in nodes.record())
            progress.announce(self.here["digits on GPUs" if on_gpus else "digits"])
            for spec in specs if opts.resume else []:
                progress.recall(spec.name, records.read_rows(spec.folder))
            curves = tensorboard.Live(self.folder, self.declared, progress.announce)
            listeners = [progress, curves, *([search] if search else [])]
            propose = functools.partial(self.propose, spec_of) if search else None
            work = Work(pending, specs[0], listeners, decide, propose)
            run_all(self.study.trainable, work, nodes)

    def spec_of(self, p: Planned, metric: str, patience: int) -> Spec:
        """Return what a worker must know to run a trial."""
        remote = mirror.of(self.folder / "study.json")
        shared = self.declared.get("fit", {}).get("settings", {})
        return Spec(
            p.trial, p.config, self.private, self.folder, metric, self.study.mode, remote, patience,
            shared,
        )  # fmt: skip

    def propose(self, spec_of: Callable[[Planned], Spec]) -> Spec | None:
        """Return what the search wants tried next, once it is recorded; None when it has enough."""
        assert self.search is not None
        p = self.search.propose()
        if p is None:
            return None
        self.declared["trials"].append(p.record())
        self.declared["search"] = self.search.record()
        self.write()
        return spec_of(p)


def _decide(rules: Stopping, metric: str, mode: str, specs: Sequence[Spec]) -> Decide | None:
    """Return what stops trials that do worse than others, given what these did in earlier runs."""
    if rules.scheduler != "asha":
        return None
    from core.cluster.tune import Halving  # brings Ray

    halving = Halving(rules, metric, mode, max(epochs_of(spec.config) for spec in specs))
    for spec in specs:
        halving.recall(spec.name, records.read_rows(spec.folder))
    return halving.decide


def _counts(specs: Sequence[Any], pending: Sequence[Any], total: int) -> str:
    done = len(specs) - len(pending)
    started = sum((spec.folder / "history.json").is_file() for spec in pending)
    if not done and not started:
        return f"{total} trials"
    return f"resuming: {done} done, {started} continue, {total - done - started} to do"


def finish(study: Study, folder: Path, trials: Sequence[Mapping[str, Any]]) -> int:
    """Write the report of a result folder, say where it is, and return the exit code."""
    searched = "search" in read_json(folder / "study.json")
    write = study.search.report if searched and study.search is not None else None
    (write or study.report)(folder)
    failed = [t for t in trials if t["state"] not in ("finished", "stopped")]
    remote = mirror.of(folder / "report.html")
    where = os.path.relpath(folder) if remote is None else remote.shown
    losses = f" ({len(failed)} of {len(trials)} trials failed)" if failed else ""
    print(f"report: {where}/report.html{losses}")
    return SOME_FAILED if failed else FINISHED


def report_only(study: Study, folder: Path) -> int:
    """Rebuild the report from the files in `folder`; trials that never ended count as failed."""
    if not (folder / "study.json").is_file():
        raise UserError(f"no study at {mirror.shown(folder)}: check --results-dir and --name")
    whole = (folder / "trials").is_dir()
    trials = collect.collect(folder, study.metric, study.mode) if whole else collect.read(folder)
    return finish(study, folder, trials)
