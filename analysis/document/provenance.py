"""What every report says about itself: warnings, broken trials, versions, data, cost."""

import dataclasses
import functools
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.document import report as reports
from analysis.document import tables
from analysis.document.markup import escape
from analysis.document.report import Code, Report, Section, join
from analysis.results.folder import Results, load
from core.cluster.slots import Slots, sentence
from core.errors import some

_FILES = ("study.json", "trials.csv", "history.csv")
_ENDED = ("finished", "stopped")
_REASON_LENGTH = 300
_REASON = tables.text("reason", "reason", wrap=True)
# /a/b, ~/a/b, C:\\a\\b; not the slash in and/or, in https:// or in a relative path.
_ABSOLUTE = re.compile(r"(?<![\w.:/\\~…-])(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\'\",;:()]+)+[/\\]?")

# Options that change no number: where results go, on what they are computed, how a run went on.
_WITH_VALUE = ("--results-dir", "--name", "--address", "--max-concurrent", "--max-retries")
_ALONE = ("--local", "--resume")


def of_finished(write: Callable[..., None]) -> Callable[..., None]:
    """From `write`, which reports results, the function of a study that reports a result folder.

    It takes the folder, with study.json, trials.csv and history.csv, and what `write` takes beside
    the results; where no trial has ended with numbers, it says why and calls `write` not. It raises
    UserError where a file of the folder is missing or damaged.
    """

    @functools.wraps(write)
    def report(path: Path, *arguments: Any, **named: Any) -> None:
        results = load(path)
        ended = set(results.trials.loc[results.trials["state"].isin(_ENDED), "trial"])
        if ended & {*results.history["trial"], *results.with_predictions()}:
            write(results, *arguments, **named)
        else:
            report_reasons(results)

    return report


def report_reasons(results: Results) -> None:
    """Write tables/reasons and a report that says why trials did not finish, and nothing else."""
    shown = [_reasons(results)]
    sections = [Section("Why nothing can be compared", tuple(shown))]
    publish(results, f"{results.study['study']}: no numbers", sections, shown, shown, sources=())


def publish(
    results: Results,
    title: str,
    sections: Sequence[Section | None],
    written: Sequence[tables.Table | None],
    printed: Sequence[tables.Table],
    timed: bool = True,
    sources: Sequence[str] = ("predictions/",),
    elsewhere: str = "",
) -> None:
    """Write tables/, report.html and report.pdf of a study and print its short tables.

    A study's own sections stand between its warnings and the record of how it was made.

    Args:
        results: the study.
        title: plain text.
        sections: top to bottom; None for what there is not.
        written: tables for tables/; None for what there is not.
        printed: tables for the terminal.
        timed: see `how_made`.
        sources: what of the folder the sections are made of, beside study.json, trials.csv and
            history.csv.
        elsewhere: what else they are made of, with the "and" before it, in markup.
    """
    for table in filter(None, written):
        tables.write(table, results.path / "tables")
    kept = tuple(filter(None, (*sections, broken_trials(results), how_made(results, timed))))
    files = [f"`{name}`" for name in (*_FILES, *sources) if (results.path / name).exists()]
    footer = f"Every number that this study measured is computed from {join(files)} beside this "
    footer += f"file{elsewhere}; tables and figures are in `tables/` and `figures/`."
    report = Report(title, escape(results.study["question"]), kept, banners(results), footer)
    reports.write(report, results.path)
    for table in printed:
        tables.print_table(table)


def _reasons(results: Results) -> tables.Table:
    """Why trials did not finish, the most frequent reason first."""
    trials = results.trials[~results.trials["state"].isin(_ENDED)]
    trials = trials.assign(reason=trials["error"].map(_reason))
    groups = trials.groupby(["reason", "state"], sort=False)
    rows = groups.agg(trials=("trial", "size"), such_as=("trial", "first")).reset_index()
    rows = rows.sort_values("trials", ascending=False, kind="stable").head(30)
    kind = (tables.text("state", "state"), tables.number("trials", "trials"))
    columns = (_REASON, *kind, tables.text("such_as", "such as", wrap=True))
    total = len(results.trials)
    done = f"{total - len(trials)}" if len(trials) < total else "None"
    return tables.Table("reasons", rows, columns, f"{done} of {total} trials finished.")


def banners(results: Results) -> tuple[str, ...]:
    """Warnings that a reader must see first, as markup."""
    total, states = len(results.trials), results.trials["state"]
    unfinished = int((states == "unfinished").sum())
    bad = int(states.isin(["failed", "diverged"]).sum())
    kinds, smoke = _numerics(results.trials), results.study.get("scale") == "smoke"
    said = {
        "**Synthetic data: generated images, not photographs.** The numbers compare the settings "
        "with each other on these images and say nothing about real ones.": results.synthetic,
        f"**The study is unfinished: {total - unfinished} of {total} trials have run.** Everything "
        "below is about those only and may change when the rest is done.": unfinished,
        f"**{bad} of {total} trials failed or diverged** and are in no mean; they are listed with "
        "their reasons below.": bad,
        "**Trials ran on machines that add up differently**, so that their last digits differ for "
        f"no setting's sake: {'; '.join(map(escape, kinds))}.": len(kinds) > 1,
        "**Smoke run:** it shows that every step works; the numbers mean nothing.": smoke,
    }
    return tuple(words for words, holds in said.items() if holds)


def _numerics(trials: pd.DataFrame) -> list[str]:
    """Name each fingerprint of numerics (`core.numerics`) and the trials that ran under it."""
    if "numerics" not in trials:
        return []
    known = trials[trials["numerics"].fillna("").astype(str) != ""]
    groups = known.groupby("numerics", sort=False)["trial"]
    return [f"{name}: {some(list(names), 8)}" for name, names in groups]


def broken_trials(results: Results) -> Section | None:
    """Failed, diverged and unfinished trials with their reasons; None when there are none."""
    bad = results.trials[results.trials["state"].isin(["failed", "diverged", "unfinished"])]
    if bad.empty:
        return None
    rows = bad.head(30).assign(reason=lambda shown: shown["error"].map(_reason))
    columns = (tables.text("trial", "trial"), tables.text("state", "state"), _REASON)
    note = f"{len(bad) - 30} more are in trials.csv." if len(bad) > 30 else ""
    table = tables.Table("broken_trials", rows, columns, "Trials that are in no mean.", note)
    return Section("Trials that did not finish", (table,))


def how_made(results: Results, timed: bool = True) -> Section:
    """Command, commit, versions, hardware, seeds, data and cost.

    Args:
        results: the study.
        timed: with what differs when the same study is run again: start, time, slots, and where
            results go; without it the same numbers give the same bytes.
    """
    study = results.study
    rows = [
        ("Commit", _commit(study.get("git") or {})),
        ("Scale", _words(study.get("scale"))),
        ("Seeds", ", ".join(map(str, results.levels("seed")))),
        ("Optimiser", _optimisers(results)),
        ("Started", _words(study.get("started")) if timed else ""),
        ("Versions", _words(study.get("versions"))),
        ("Hardware", _words(study.get("hardware"))),
        ("Numerics", _arithmetic(study.get("numerics") or {})),
        ("Slots", _slots(study.get("slots")) if timed else ""),
        ("Time", _time(results) if timed else "in study.json and trials.csv"),
        *_data_rows(study.get("data") or {}),
        ("Left out", _words(study.get("notes"))),
        ("Resumed", _resumed(study, always=timed)),
        ("Constants", _words(study.get("constants"))),
    ]
    frame = pd.DataFrame([row for row in rows if row[1]], columns=["what", "value"])
    columns = (tables.text("what", ""), tables.text("value", "", wrap=True))
    table = tables.Table("provenance", frame, columns, "How this study was made.")
    command = [relative(str(word)) for word in study.get("command") or []]
    command = command if timed else _repeatable(command)
    code = (Code(wrap_command(command)),) if command else ()
    return Section("How this was made", (*code, table))


def _optimisers(results: Results) -> str:
    """Each optimiser with the learning rates at their highest, where they are known."""
    noted = results.trials.set_index("trial").get("base_lr", pd.Series(dtype=float))
    rates: dict[str, dict[str, None]] = {}
    for entry in results.study["trials"]:
        config = entry.get("config", {})
        rate = noted.get(entry["trial"])
        rate = config.get("lr") if rate is None or pd.isna(rate) else rate
        if "optimizer" in config and rate is not None:
            rates.setdefault(str(config["optimizer"]), {})[tables.significant(float(rate))] = None
    return "; ".join(f"{name}, learning rate {join(list(found))}" for name, found in rates.items())


def _repeatable(command: Sequence[str]) -> list[str]:
    """Leave out of a command where results go and on what they are computed."""
    kept: list[str] = []
    words = iter(command)
    for word in words:
        option = word.partition("=")[0]
        if option in _WITH_VALUE and "=" not in word:
            next(words, None)
        elif option not in (*_WITH_VALUE, *_ALONE):
            kept.append(word)
    return kept


def _slots(slots: Mapping[str, Any] | None) -> str:
    """What each trial could take, as the engine said it at the start."""
    if not slots:
        return ""
    known = {field.name for field in dataclasses.fields(Slots)}
    nodes = [Slots(**{k: v for k, v in node.items() if k in known}) for node in slots["nodes"]]
    return sentence(nodes, slots["memory"])


def relative(words: str) -> str:
    """Cut absolute paths in a text down to their last part: reports are passed on."""
    return _ABSOLUTE.sub(lambda found: "…/" + re.split(r"[/\\]", found[0].rstrip("/\\"))[-1], words)


def wrap_command(words: Iterable[str]) -> str:
    """A shell command over several lines, each but the last ending in a backslash."""
    lines = [""]
    for word in (word if word.startswith("…") else shlex.quote(word) for word in words):
        if lines[-1] and len(lines[-1]) + len(word) > 88:
            lines.append("   ")
        lines[-1] += f" {word}" if lines[-1] else word
    return " \\\n".join(lines)


def duration(seconds: float) -> str:
    """Seconds as "48 s", "3 min 20 s" or "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def image_counts(data: Mapping[str, Any]) -> dict[str, int]:
    """Images per split from study.json's data record: {"train": 5000, "val": 1250}."""
    counts = {split: _total(found) for split, found in (data.get("counts") or {}).items()}
    return counts | (data.get("images") or {})


def _reason(words: str) -> str:
    words = relative(" ".join(str(words or "").split()))
    return words if len(words) <= _REASON_LENGTH else words[: _REASON_LENGTH - 1] + "…"


def _commit(git: Mapping[str, Any]) -> str:
    if not git.get("commit"):
        return "not in a git checkout"
    return git["commit"] + (" with uncommitted changes" if git.get("dirty") else "")


def _arithmetic(numerics: Mapping[str, Any]) -> str:
    """Instruction set, threads and digest: equal digests, equal digits."""
    if not numerics:
        return ""
    return f"CPU {numerics['cpu']}, threads {numerics['threads']}, digest {numerics['digest']}"


def _resumed(study: Mapping[str, Any], always: bool) -> str:
    """How often the study was continued, and what had changed; with `always`, also if nothing."""
    again = study.get("resumed") or []
    parts = {"git": "the code", "versions": "library versions", "numerics": "numerics"}
    new = [key for key in parts if key in study and any(r.get(key) != study[key] for r in again)]
    if not again or not (always or new):
        return ""
    note = f"; {join([parts[key] for key in new])} had changed" if new else ""
    return f"{len(again)} time{'s' if len(again) > 1 else ''}{note}"


def _time(results: Results) -> str:
    seconds = results.trials.get("seconds", pd.Series(dtype=float)).dropna().astype(float)
    parts = []
    if results.study.get("seconds"):
        parts.append(f"{duration(float(results.study['seconds']))} from start to end")
    if len(seconds):
        parts.append(
            f"{len(seconds)} trials of {duration(seconds.mean())} on average, "
            f"{duration(seconds.sum())} in all"
        )
    return "; ".join(parts)


def _data_rows(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Kind, size, counts, fingerprint, skipped files and duplicates."""
    kind = {"synthetic": "generated images, not photographs", "folder": "image folder"}
    described = _words(data.get("description")) or kind.get(str(data.get("kind")), "")
    size = data.get("image_size")
    counts, images = data.get("counts") or {}, data.get("images") or {}
    skipped, duplicates = data.get("skipped"), data.get("duplicates")
    examples = [" = ".join(map(str, pair)) for pair in data.get("duplicate_examples") or []]
    same = f"{_words(duplicates)}" + (f": {', '.join(examples)}" if examples else "")
    return [
        ("Data", described),
        ("Image size", f"{size} x {size} pixels" if isinstance(size, int) else _words(size)),
        ("Classes", _classes(data.get("classes"))),
        ("Images", join([_count(split, n, images.get(split)) for split, n in counts.items()])),
        ("Fingerprint", _words(data.get("fingerprint"))),
        ("Broken files skipped", _named(skipped) if skipped is not None else ""),
        ("Exact duplicates between splits", same),
        ("Notes on the data", "; ".join(map(_words, data.get("notes") or []))),
    ]


def _classes(classes: Any) -> str:
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        return _words(classes)
    more = " …" if len(classes) > 30 else ""
    return f"{len(classes)}: {', '.join(map(str, classes[:30]))}{more}"


def _count(split: str, found: Any, images: int | None = None) -> str:
    """A split's images, and how many a class has; `images` where one may have several classes."""
    total = _total(found) if images is None else images
    per_class = list(found.values()) if isinstance(found, Mapping) else found
    if not isinstance(per_class, Sequence) or not per_class:
        return f"{total:,} in {split}"
    low, high = min(per_class), max(per_class)
    each = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f"{total:,} in {split} ({each} of each class)"


def _total(found: Any) -> int:
    if isinstance(found, Mapping):
        return sum(int(count) for count in found.values())
    return sum(found) if isinstance(found, Sequence) else int(found)


def _named(found: Any) -> str:
    """A count, or a list with its length and its first names."""
    if not found or not isinstance(found, list):
        return _words(found or 0)
    more = ", …" if len(found) > 5 else ""
    return f"{len(found)}: {', '.join(map(_words, found[:5]))}{more}"


def _words(value: Any) -> str:
    """Any value of study.json as words, without absolute paths."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        shown = ((key, _words(inner)) for key, inner in value.items())
        return ", ".join(f"{key} {words}" for key, words in shown if words)
    if isinstance(value, list | tuple):
        return ", ".join(_words(inner) for inner in value)
    return relative(str(value))
