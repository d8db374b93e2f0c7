"""What the commands for studies do: call the library, print, and turn how a study ended into an exit code."""

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fcurr_cli.errors import fail, messages


class How(NamedTuple):
    """How a study is run, as the command line says it."""

    engine: str = ""
    jobs: int = 0
    fail_fast: bool = False
    yes: bool = False
    only: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def run(table: dict[str, Any], config: Path, plugins: Sequence[str], out: Path, fresh: bool, how: How) -> None:
    """A config that is a study; called where a wrong key is given its line."""
    from fcurr.errors import BadInput
    from fcurr.io import engines, notifying, studying

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise BadInput("torchrun is for single runs: a study has --jobs, and engines (--engine)")
    if not how.yes:
        _limited(table)
    here = studying.opened(table, plugins, out, config.resolve().parent, how.only)
    studying.tried(here)
    engine = engines.named(how.engine or "local", how.jobs or 1, engines.options(how.options))
    try:
        here, outcome = studying.run(here, engine, fail_fast=how.fail_fast, fresh=fresh)
    except BadInput:
        raise
    except OSError as wrong:
        notifying.tell(here.study.notify, here.name, f"failed: {wrong}")
        raise
    if outcome.signal:
        raise fail(f"stopped; nothing is lost; to go on: {_again()}", 128 + outcome.signal)
    for line in studying.failures(here, outcome, _again("--only")):
        print(line, file=sys.stderr)
    notifying.tell(here.study.notify, here.name, studying.ended(outcome))
    for line in studying.summary(here, outcome):
        print(line)
    if studying.fails(here, outcome):
        raise fail(studying.ended(outcome), 1)


def _limited(table: dict[str, Any]) -> None:
    """BadInput where a sweep makes more runs than it may without being asked."""
    from fcurr.study import members, sections, sweeping

    study = sections.read(table)
    if study.sweep is None:
        return
    plain = {key: value for key, value in table.items() if key not in sections.SECTIONS}
    first = members.trainings(sweeping.applied(plain, sweeping.point(study.sweep, 0)))
    folds = max(1, study.folds) * max(1, study.inner_folds)
    sweeping.limited(study.sweep, len(first) * folds)


def _again(without: str = "") -> str:
    """The command line, but not --fresh, and not this option with its value."""
    kept: list[str] = []
    words = iter(sys.argv[1:])
    for word in words:
        if without and word == without:
            next(words, "")
        elif word != "--fresh" and not (without and word.startswith(f"{without}=")):
            kept.append(word)
    return f"fcurr {shlex.join(kept)}"


def check(table: dict[str, Any], config: Path, plugins: Sequence[str], out: Path) -> list[str]:
    from fcurr.io import studying

    _limited(table)
    here = studying.opened(table, plugins, out, config.resolve().parent)
    studying.tried(here)
    return studying.forecast(here)[0]


def plan(
    config: Path,
    changes: Sequence[str],
    plugins: Sequence[str],
    out: Path,
    only: Sequence[str],
    everything: bool,
    as_json: bool,
) -> None:
    with messages():
        from fcurr.io import configs, studying
        from fcurr.study import sections

        table, source = configs.load(config, changes, plugins)
        try:
            if not sections.holds(table):
                configs.read(table, plugins)  # a section may be misspelt
                raise configs.BadInput("this config is one run and no study: fcurr check says what it would do")
            _limited(table)
            here = studying.opened(table, plugins, out, config.resolve().parent, only)
        except configs.BadInput as wrong:
            raise configs.located(wrong, source) from None
        lines, data = studying.forecast(here, everything=everything)
        print(json.dumps(data, indent=1, default=str) if as_json else "\n".join(lines))


def status(folder: Path, everything: bool, as_json: bool) -> None:
    with messages():
        from fcurr.io import reading

        lines, data = reading.status(folder, everything=everything)
        print(json.dumps(data, indent=1) if as_json else "\n".join(lines))


def clean(out: Path, yes: bool) -> None:
    with messages():
        from fcurr.io import cleaning

        found = cleaning.found(out / "store")
        print("\n".join(cleaning.told(found)))
        if found and (yes or (sys.stdin.isatty() and input("remove them? [y/N] ").strip().lower() == "y")):
            kept = len(found) - cleaning.remove(out / "store", found)
            print(f"removed, but for {kept:,} that a study refers to by now" if kept else "removed")
        elif found:
            print("nothing was removed; --yes removes them")


def compare(folders: Sequence[Path], *, which: str, aggregate: str, repeats: Sequence[str] | None, **how: Any) -> None:
    with messages():
        from fcurr.errors import BadInput
        from fcurr.io import needing

        needing.need("a comparison", scipy="report", pyarrow="data", matplotlib="report", jinja2="report")
        from fcurr.io import comparison
        from fcurr.study.near import near

        for name, value, known in (
            ("--which", which, ("last", "best", "both")),
            ("--aggregate", aggregate, ("mean", "median", "max", "min")),
        ):
            if value not in known:
                raise BadInput(f"{name} {value}{near(value, known)}: it is one of {', '.join(known)}")
        how |= {"which": which, "aggregate": aggregate, "repeats": repeats or comparison.REPEATS}
        lines = comparison.compare(folders, **how)
        print("\n".join(lines))


def runs(out: Path) -> None:
    with messages():
        from fcurr.io import reading

        print("\n".join(reading.runs(out)))
