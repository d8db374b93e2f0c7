"""`fcurr`: each command a screen long, no logic of its own. Nothing heavy is imported before it is needed."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Functional curriculum learning: which samples, in what order, how much each counts.",
)

Config = Annotated[Path, typer.Argument(help="A TOML file that describes the run.")]
Changes = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the config, by dotted key.")
]
Plugins = Annotated[
    list[str] | None,
    typer.Option("--plugin", metavar="MODULE", help="Allow components from this module. May be repeated."),
]
Out = Annotated[Path, typer.Option("--out", help="The folder in which runs have theirs.")]

Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]
Member = Annotated[
    int | None, typer.Option("--member", help="Which member, by its number; else the one with the best validation.")
]
Last = Annotated[bool, typer.Option("--last", help="The weights in the end, not those of the best evaluation.")]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        import fcurr

        print(fcurr.__version__)
        raise typer.Exit


@app.command()
def run(
    config: Config,
    changes: Changes = None,
    plugin: Plugins = None,
    out: Out = Path("runs"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Throw away what an earlier run of this name left.")] = False,
) -> None:
    """Score, train and report what CONFIG describes; the same command again continues an unfinished run."""
    from fcurr_cli import commands

    commands.run(config, changes or [], plugin or [], out, fresh)


@app.command()
def resume(
    folder: Run,
    changes: Changes = None,
    plugin: Plugins = None,
) -> None:
    """Go on with the run in FOLDER; with training.total_iterations=MORE, also with one that is finished."""
    from fcurr_cli import commands

    commands.resume(folder, changes or [], plugin or [])


@app.command()
def export(
    folder: Run,
    to: Annotated[Path, typer.Argument(help="The file to write: .safetensors, a state dict, or .onnx.")],
    member: Member = None,
    last: Last = False,
    plugin: Plugins = None,
) -> None:
    """Write the weights of a run as a file for others."""
    from fcurr_cli import commands

    commands.export(folder, to, member, last, plugin or [])


@app.command()
def predict(
    folder: Run,
    samples: Annotated[Path, typer.Argument(help="Samples without labels: .csv, .parquet, .npy or .npz.")],
    to: Annotated[Path, typer.Option("--to", help="The table to write: .csv or .parquet.")] = Path("predictions.csv"),
    member: Member = None,
    last: Last = False,
    plugin: Plugins = None,
) -> None:
    """Write what a run predicts for SAMPLES."""
    from fcurr_cli import commands

    commands.predict(folder, samples, to, member, last, plugin or [])


@app.command()
def check(config: Config, changes: Changes = None, plugin: Plugins = None, out: Out = Path("runs")) -> None:
    """Say whether CONFIG is right and what would run; touch nothing."""
    from fcurr_cli import commands

    commands.check(config, changes or [], plugin or [], out)


@app.command()
def ls(
    role: Annotated[str | None, typer.Argument(help="A role, such as pace; all of them if left out.")] = None,
) -> None:
    """List the components, a line each."""
    from fcurr_cli import commands

    commands.ls(role)


@app.command()
def explain(
    name: Annotated[str, typer.Argument(help="A component, such as root, pace.root or module:function.")],
    plugin: Plugins = None,
) -> None:
    """Show a component: what it takes, in what units, its formula and its source."""
    from fcurr_cli import commands

    commands.explain(name, plugin or [])


@app.command()
def init(folder: Annotated[Path, typer.Argument(help="Where to put the files.")] = Path()) -> None:
    """Write a starter config and a commented pace and score of your own, which run as they are."""
    from fcurr_cli import commands

    commands.init(folder)


@app.command()
def schema() -> None:
    """Print the JSON Schema of configs, for editors."""
    from fcurr_cli import commands

    commands.schema()


def main(arguments: Sequence[str] | None = None) -> None:
    """The program. A reader that goes away (`fcurr ls | head`) ends it quietly."""
    try:
        app(arguments)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
