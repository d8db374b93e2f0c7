"""What the commands do: call the library, print, and turn its errors into messages and exit codes.

0 done; 1 failed; 2 a wrong command line, config or input; 3 a loss that is not finite; 5 the disk; 130 and 143 stopped
by Ctrl-C and SIGTERM.
"""

import contextlib
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from importlib.resources import files as resources
from pathlib import Path

import typer


def fail(message: str, code: int) -> typer.Exit:
    print(f"fcurr: {message}", file=sys.stderr)
    return typer.Exit(code)


@contextlib.contextmanager
def messages(resume: str = "") -> Iterator[None]:
    """Errors that are messages to a person, as messages and exit codes."""
    from fcurr.errors import BadInput

    try:
        yield
    except BadInput as wrong:
        raise fail(str(wrong), 2) from None
    except OSError as wrong:
        raise fail(f"{wrong.filename or 'the disk'}: {wrong.strerror or wrong}", 5) from None
    except KeyboardInterrupt:
        raise fail(f"stopped at once{resume}", 130) from None


def run(config: Path, changes: Sequence[str], plugins: Sequence[str], out: Path, fresh: bool) -> None:
    again = f"; to go on: fcurr {shlex.join(a for a in sys.argv[1:] if a != '--fresh')}"
    with messages(again):
        from fcurr.io import configs
        from fcurr.io.execute import execute
        from fcurr.io.runner import Diverged, Stopped

        table, source = configs.load(config, changes, plugins)
        try:
            hashes = configs.hashes(plugins)
            experiment = configs.read(table, plugins)
            execute(experiment, out / experiment.name, hashes, fresh=fresh)
        except Stopped as stop:
            raise fail(f"{stop}; nothing is lost{again}", 128 + stop.signal) from None
        except Diverged as wrong:
            raise fail(str(wrong), 3) from None
        except configs.BadInput as wrong:
            raise configs.located(wrong, source) from None
        show(out / experiment.name)


def show(folder: Path) -> None:
    """The results of a finished run, on stdout."""
    from fcurr.io import store

    found = store.read_json(folder / store.RESULTS)
    width = max(len("arm"), *(len(row["arm"]) for row in found["table"]))
    print(f"{'test accuracy, %':{width}}  {'last':>14}  {'best on validation':>18}  seeds")
    for row in found["table"]:
        last, best = (f"{100 * row[f'{k}_mean']:.1f}" for k in ("last", "best"))
        if row["seeds"] > 1:
            last, best = f"{last} ± {100 * row['last_std']:.1f}", f"{best} ± {100 * row['best_std']:.1f}"
        print(f"{row['arm']:{width}}  {last:>14}  {best:>18}  {row['seeds']:>5}")
    for name, fact in found["facts"].items():
        print(f"{name}: {fact}")
    print(f"report: {folder / store.REPORT}")


def check(config: Path, changes: Sequence[str], plugins: Sequence[str], out: Path) -> None:
    with messages():
        from fcurr.io import configs
        from fcurr.io.execute import preview

        table, source = configs.load(config, changes, plugins)
        try:
            hashes = configs.hashes(plugins)
            experiment = configs.read(table, plugins)
            lines = preview(experiment, out / experiment.name, hashes)
        except configs.BadInput as wrong:
            raise configs.located(wrong, source) from None
        print(f"{config} is right. It would")
        print("\n".join(f"  {line}" for line in lines))


def ls(role: str | None) -> None:
    with messages():
        from fcurr.errors import BadInput
        from fcurr.study.near import near
        from fcurr.study.roles import ROLES, components

        if role is not None and role not in ROLES:
            raise BadInput(f"there is no role `{role}`{near(role, ROLES)}; there are {', '.join(ROLES)}")
        for name in [role] if role else ROLES:
            print(f"{name}: {ROLES[name].answers}")
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
