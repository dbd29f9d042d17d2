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

_ENDED = ("finished", "stopped")
_REASON_LENGTH = 300
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
    reasons = _reasons(results)
    sections = [Section("Why nothing can be compared", (reasons,))]
    title = f"{results.study['study']}: no numbers"
    publish(results, title, sections, [reasons], [reasons], sources=())


def publish(
    results: Results,
    title: str,
    sections: Sequence[Section | None],
    written: Sequence[tables.Table | None],
    printed: Sequence[tables.Table],
    **about: Any,
) -> None:
    """Write tables/, report.html and report.pdf of a study and print its short tables.

    Args:
        results: the study.
        title: plain text.
        sections: top to bottom; None for what there is not.
        written: tables for tables/; None for what there is not.
        printed: tables for the terminal.
        **about: further arguments of `study_report`.
    """
    for table in filter(None, written):
        tables.write(table, results.path / "tables")
    reports.write(study_report(results, title, sections, **about), results.path)
    for table in printed:
        tables.print_table(table)


def _reasons(results: Results) -> tables.Table:
    """Why trials did not finish, the most frequent reason first."""
    trials = results.trials[~results.trials["state"].isin(_ENDED)]
    trials = trials.assign(reason=[_reason(words) for words in trials["error"]])
    groups = trials.groupby(["reason", "state"], sort=False)
    rows = groups.agg(trials=("trial", "size"), such_as=("trial", "first")).reset_index()
    rows = rows.sort_values("trials", ascending=False, kind="stable").head(30)
    columns = (
        tables.text("reason", "reason", wrap=True),
        tables.text("state", "state"),
        tables.number("trials", "trials"),
        tables.text("such_as", "such as", wrap=True),
    )
    total = len(results.trials)
    done = f"{total - len(trials)}" if len(trials) < total else "None"
    return tables.Table("reasons", rows, columns, f"{done} of {total} trials finished.")


def study_report(
    results: Results,
    title: str,
    sections: Sequence[Section | None],
    timed: bool = True,
    sources: Sequence[str] = ("predictions/",),
    elsewhere: str = "",
) -> Report:
    """A study's own sections between its warnings and the record of how it was made.

    Args:
        results: the study.
        title: plain text.
        sections: top to bottom; None for what there is not.
        timed: see `how_made`.
        sources: what of the folder the sections are made of, beside study.json, trials.csv and
            history.csv.
        elsewhere: what else they are made of, with the "and" before it, in markup.
    """
    kept = [one for one in (*sections, broken_trials(results)) if one]
    files = ["study.json", "trials.csv", "history.csv", *sources]
    files = [f"`{name}`" for name in files if (results.path / name).exists()]
    return Report(
        title=title,
        question=escape(results.study["question"]),
        sections=(*kept, how_made(results, timed)),
        banners=banners(results),
        footer=f"Every number that this study measured is computed from {join(files)} beside this "
        f"file{elsewhere}; tables and figures are in `tables/` and `figures/`.",
    )


def banners(results: Results) -> tuple[str, ...]:
    """Warnings that a reader must see first, as markup."""
    found = []
    if results.synthetic:
        found.append(
            "**Synthetic data: generated images, not photographs.** The numbers compare the "
            "settings with each other on these images and say nothing about real ones."
        )
    unfinished = int((results.trials["state"] == "unfinished").sum())
    if unfinished:
        total = len(results.trials)
        found.append(
            f"**The study is unfinished: {total - unfinished} of {total} trials have run.** "
            "Everything below is about those only and may change when the rest is done."
        )
    bad = int(results.trials["state"].isin(["failed", "diverged"]).sum())
    if bad:
        found.append(
            f"**{bad} of {len(results.trials)} trials failed or diverged** and are in no mean; "
            "they are listed with their reasons below."
        )
    if "numerics" in results.trials and len(kinds := _numerics(results)) > 1:
        found.append(
            "**Trials ran on machines that add up differently**, so that their last digits differ "
            "for no setting's sake: " + "; ".join(escape(kind) for kind in kinds) + "."
        )
    if results.study.get("scale") == "smoke":
        found.append("**Smoke run:** it shows that every step works; the numbers mean nothing.")
    return tuple(found)


def _numerics(results: Results) -> list[str]:
    """Name each fingerprint of numerics (`core.numerics`) and the trials that ran under it."""
    known = results.trials[results.trials["numerics"].fillna("").astype(str) != ""]
    groups = known.groupby("numerics", sort=False)["trial"]
    return [f"{name}: {_some(list(trials))}" for name, trials in groups]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more


def broken_trials(results: Results) -> Section | None:
    """Failed, diverged and unfinished trials with their reasons; None when there are none."""
    bad = results.trials[results.trials["state"].isin(["failed", "diverged", "unfinished"])]
    if bad.empty:
        return None
    shown = bad.head(30)
    reasons = [_reason(words) for words in shown["error"]]
    rows = shown[["trial", "state"]].assign(reason=reasons)
    columns = (
        tables.text("trial", "trial"),
        tables.text("state", "state"),
        tables.text("reason", "reason", wrap=True),
    )
    rest = len(bad) - len(shown)
    note = f"{rest} more are in trials.csv." if rest else ""
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
        ("Seeds", _seeds(results)),
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
    if not timed:
        command = _repeatable(command)
    return Section(
        "How this was made", (*([Code(wrap_command(command))] if command else []), table)
    )


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


def wrap_command(words: Iterable[str], width: int = 88) -> str:
    """A shell command over several lines, each but the last ending in a backslash."""
    lines = [""]
    for word in (word if word.startswith("…") else shlex.quote(word) for word in words):
        if lines[-1] and len(lines[-1]) + len(word) > width:
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
    return f"{git['commit']}" + (" with uncommitted changes" if git.get("dirty") else "")


def _arithmetic(numerics: Mapping[str, Any]) -> str:
    """Instruction set, threads and digest: equal digests, equal digits."""
    if not numerics:
        return ""
    return f"CPU {numerics['cpu']}, threads {numerics['threads']}, digest {numerics['digest']}"


def _resumed(study: Mapping[str, Any], always: bool = True) -> str:
    """How often the study was continued, and with other code or libraries or not.

    Args:
        study: its declaration.
        always: also say so where neither had changed, so that no number could.
    """
    again = study.get("resumed") or []
    if not again:
        return ""
    parts = [part for part in ("git", "versions", "numerics") if part in study]
    changed = [part for part in parts if any(r.get(part) != study[part] for r in again)]
    if not (always or changed):
        return ""
    what = {"git": "the code", "versions": "library versions", "numerics": "numerics"}
    note = f"; {join([what[part] for part in changed])} had changed" if changed else ""
    return f"{len(again)} time{'s' if len(again) > 1 else ''}{note}"


def _seeds(results: Results) -> str:
    return ", ".join(str(seed) for seed in results.levels("seed"))


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
    if isinstance(classes, Sequence) and not isinstance(classes, str):
        return (
            f"{len(classes)}: {', '.join(map(str, classes))}"
            if len(classes) <= 30
            else (f"{len(classes)}: {', '.join(map(str, classes[:30]))} …")
        )
    return _words(classes)


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
    if isinstance(found, Mapping):
        return _words(found) if found else "0"
    if not isinstance(found, Sequence) or isinstance(found, str):
        return _words(found) or "0"
    names = [relative(_words(entry)) for entry in found[:5]]
    more = ", …" if len(found) > 5 else ""
    return f"{len(found)}" + (f": {', '.join(names)}{more}" if names else "")


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
