"""What the commands do: call the library and print."""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

from fcurr_cli import studies
from fcurr_cli.errors import fail, messages

ALONE = studies.How()


def run(
    config: Path,
    changes: Sequence[str],
    plugins: Sequence[str],
    out: Path,
    fresh: bool,
    how: studies.How = ALONE,
) -> None:
    again = f"; to go on: fcurr {shlex.join(a for a in sys.argv[1:] if a != '--fresh')}"
    with messages(again):
        from fcurr.errors import BadInput
        from fcurr.io import configs
        from fcurr.io.execute import execute
        from fcurr.io.runner import Diverged, Stopped
        from fcurr.study import sections

        table, source = configs.load(config, changes, plugins)
        try:
            hashes = configs.hashes(plugins)
            if sections.holds(table):
                return studies.run(table, config, plugins, out, fresh, how)
            if how != ALONE:
                raise BadInput(
                    "--engine, --jobs, --fail-fast, --only and --yes are for studies: this config is one run"
                )
            experiment = configs.read(table, plugins)
            speaks = execute(experiment, out / experiment.name, hashes, fresh=fresh)
        except Stopped as stop:
            raise fail(f"{stop}; nothing is lost{again}", 128 + stop.signal) from None
        except Diverged as wrong:
            raise fail(str(wrong), 3) from None
        except configs.BadInput as wrong:
            raise configs.located(wrong, source) from None
        if speaks:
            show(out / experiment.name)


def resume(folder: Path, changes: Sequence[str], plugins: Sequence[str]) -> None:
    with messages():
        from fcurr.errors import BadInput
        from fcurr.io import configs, journal, store

        begun = (folder / journal.JOURNAL).exists()
        if not any((folder / name).exists() for name in (store.IDENTITY, journal.JOURNAL)):
            raise BadInput(f"{folder} is not the folder of a run: it has no {store.IDENTITY}")
        name = folder.resolve().name
        configs.beside(Path.cwd(), plugins)
    how = studies.How(yes=True) if begun else ALONE  # a study that was begun had its sweep allowed
    run(folder / store.CONFIG, [*changes, f"name={json.dumps(name)}"], plugins, folder.resolve().parent, False, how)


def export(folder: Path, to: Path, member: int | None, last: bool, plugins: Sequence[str]) -> None:
    with messages():
        from fcurr.errors import BadInput
        from fcurr.io import using

        found = using.weights(folder, member, "last" if last else "best")
        if to.suffix == ".safetensors":
            using.write_weights(to, found)
        elif to.suffix == ".onnx":
            using.write_onnx(to, found, _prepared(folder, found.member, plugins))
        else:
            raise BadInput(f"{to} is neither .safetensors nor .onnx")
        print(f"{to}: member {found.member} of {folder}, step {found.iteration}")


def predict(folder: Path, samples: Path, to: Path, member: int | None, last: bool, plugins: Sequence[str]) -> None:
    with messages():
        from fcurr.errors import BadInput
        from fcurr.io import using

        if to.suffix not in (".csv", ".parquet"):
            raise BadInput(f"{to} is neither .csv nor .parquet")
        found = using.weights(folder, member, "last" if last else "best")
        config, prepared = using.config(folder, found.member), _prepared(folder, found.member, plugins)
        columns = using.predict(found, prepared, samples, using.features(config.get("data")), chunk=4096)
        using.write_predictions(to, columns)
        print(f"{to}: member {found.member} of {folder}, step {found.iteration}")


def _prepared(folder: Path, member: int, plugins: Sequence[str]):
    """The data and the model of a run."""
    from fcurr.io import configs, runner, using

    configs.beside(Path.cwd(), plugins)
    return runner.load(configs.read(using.config(folder, member), plugins))


def show(folder: Path) -> None:
    """The results of a finished run, on stdout."""
    from fcurr.io import store
    from fcurr.study.words import SHARES

    found = store.read_json(folder / store.RESULTS)
    share = found["metric"] in SHARES
    title = f"test {found['metric'].replace('_', ' ')}{', %' if share else ''}"
    width = max(len(title), *(len(row["arm"]) for row in found["table"]))
    print(f"{title:{width}}  {'last':>14}  {'best on validation':>18}  seeds")
    for row in found["table"]:
        last, best = (_cell(row, which, share) for which in ("last", "best"))
        print(f"{row['arm']:{width}}  {last:>14}  {best:>18}  {row['seeds']:>5}")
    for name, fact in found["facts"].items():
        print(f"{name}: {fact}")
    print(f"report: {folder / store.REPORT}")


def _cell(row: dict[str, Any], which: str, share: bool) -> str:
    """74.3 ± 2.1, of several seeds."""
    mean, spread = row[f"{which}_mean"], row[f"{which}_std"]
    if mean is None:
        return "-"
    said = f"{100 * mean:.1f}" if share else f"{mean:.4g}"
    if row["seeds"] == 1:
        return said
    return f"{said} ± {100 * spread:.1f}" if share else f"{said} ± {spread:.2g}"


def check(config: Path, changes: Sequence[str], plugins: Sequence[str], out: Path) -> None:
    with messages():
        from fcurr.io import configs
        from fcurr.io.execute import preview
        from fcurr.study import sections

        table, source = configs.load(config, changes, plugins)
        try:
            hashes = configs.hashes(plugins)
            if sections.holds(table):
                lines = studies.check(table, config, plugins, out)
                print(f"{config} is right. It is")
                return print("\n".join(f"  {line}" for line in lines))
            experiment = configs.read(table, plugins)
            lines = preview(experiment, out / experiment.name, hashes)
        except configs.BadInput as wrong:
            raise configs.located(wrong, source) from None
        print(f"{config} is right. It would")
        print("\n".join(f"  {line}" for line in lines))


def find(
    what: str,
    config: Path,
    changes: Sequence[str],
    plugins: Sequence[str],
    asked: Mapping[str, float | None],
    as_json: bool,
) -> None:
    """`asked` are the options, None where they are not given; those of other things to find are refused."""
    with messages():
        from fcurr.errors import BadInput
        from fcurr.io import configs, finding
        from fcurr.study import units
        from fcurr.study.near import near

        finders = {"learning_rate": finding.learning_rate, "batch_size": finding.batch_size}
        if what not in finders:
            raise BadInput(f"there is nothing to find a {what} by{near(what, finders)}; there are {', '.join(finders)}")
        hints, fixed = units.hints(finders[what]), {}
        for name, value in asked.items():
            if value is not None and name not in hints:
                own = ", ".join(f"--{key}" for key in asked if key in hints)
                raise BadInput(f"--{name} is not an option of {what}, which takes {own}")
            if value is not None:
                try:
                    fixed[name] = units.checked(value, hints[name], "")
                except BadInput as wrong:
                    raise BadInput(f"--{name}: {wrong}") from None
        table, source = configs.load(config, changes, plugins)
        try:
            found = finders[what](table, plugins, **fixed)
        except configs.BadInput as wrong:
            raise configs.located(wrong, source) from None
        print(json.dumps(found.table, indent=1) if as_json else "\n".join(found.lines))


def ls(role: str | None) -> None:
    with messages():
        from fcurr.errors import BadInput
        from fcurr.study.near import near
        from fcurr.study.roles import ROLES, components

        if role is not None and role not in ROLES:
            raise BadInput(f"there is no role `{role}`{near(role, ROLES)}; there are {', '.join(ROLES)}")
        for name in [role] if role else ROLES:
            print(f"{name}: {ROLES[name].answers}")
            if role is None and ROLES[name].module == ROLES["learning_rate"].module and name != "learning_rate":
                print("  as learning_rate")
                continue
            for component in components(name):
                print(f"  {component.name:22} {component.summary}")


def explain(name: str, plugins: Sequence[str]) -> None:
    with messages():
        from fcurr.io import configs
        from fcurr.study import explain as words

        configs.beside(Path.cwd(), plugins)
        print("\n\n".join(words.explain(name, plugins)))


def init(folder: Path) -> None:
    with messages():
        from fcurr.errors import BadInput
        from fcurr.io import files

        templates = [entry for entry in resources("fcurr_cli").joinpath("templates").iterdir() if entry.is_file()]
        if there := [entry.name for entry in templates if (folder / entry.name).exists()]:
            raise BadInput(f"{folder / there[0]} is there already; nothing was written")
        folder.mkdir(parents=True, exist_ok=True)
        for entry in sorted(templates, key=lambda entry: entry.name):
            files.write(folder / entry.name, entry.read_text())
            print(folder / entry.name)
        print(f"next: fcurr run {folder / 'starter.toml'} --plugin my_curriculum")


def schema() -> None:
    with messages():
        from fcurr.study import schema as schemas

        print(json.dumps(schemas.schema(), indent=1))
