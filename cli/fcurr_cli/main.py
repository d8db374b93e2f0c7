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

Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="NAME", help="Of a study: only commands of this name, or that match it."),
]
All = Annotated[bool, typer.Option("--all", help="List every command.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]

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
    engine: Annotated[str, typer.Option("--engine", help="Of a study: local, inline, submitit or ray.")] = "",
    jobs: Annotated[int, typer.Option("--jobs", min=0, help="Of a study: how many workers at once.")] = 0,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Of a study: stop at the first failure.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Of a study: also if its sweep makes very many runs.")] = False,
    only: Only = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--engine-option", metavar="KEY=VALUE", help="Of an engine, such as slurm_partition=long."),
    ] = None,
) -> None:
    """Run what CONFIG describes, a run or a study; the same command again continues what is unfinished."""
    from fcurr_cli import commands, studies

    commands.run(
        config,
        changes or [],
        plugin or [],
        out,
        fresh,
        studies.How(engine, jobs, fail_fast, yes, tuple(only or ()), tuple(option or ())),
    )


@app.command()
def plan(
    config: Config,
    changes: Changes = None,
    plugin: Plugins = None,
    out: Out = Path("runs"),
    only: Only = None,
    everything: All = False,
    as_json: Json = False,
) -> None:
    """Show the commands of the study that CONFIG describes: what is done, what would run and why, and how long."""
    from fcurr_cli import studies

    studies.plan(config, changes or [], plugin or [], out, only or [], everything, as_json)


@app.command()
def status(
    folder: Annotated[Path, typer.Argument(metavar="STUDY", help="The folder of a study.")],
    everything: All = False,
    as_json: Json = False,
) -> None:
    """Show how far a study is, also while it runs."""
    from fcurr_cli import studies

    studies.status(folder, everything, as_json)


@app.command()
def clean(
    out: Out = Path("runs"),
    yes: Annotated[bool, typer.Option("--yes", help="Remove without asking.")] = False,
) -> None:
    """Show what no study refers to any more in the store of a folder of runs, and remove it if told to."""
    from fcurr_cli import studies

    studies.clean(out, yes)


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
def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs or studies.")],
    by: Annotated[
        list[str] | None, typer.Option("--by", metavar="KEY", help="Group by this key; all that vary if left out.")
    ] = None,
    across: Annotated[
        str | None, typer.Option("--across", metavar="KEY", help="A column for each of its values.")
    ] = None,
    over: Annotated[list[str] | None, typer.Option("--over", metavar="KEY", help="Do not group by this key.")] = None,
    repeats: Annotated[
        list[str] | None, typer.Option("--repeats", metavar="KEY", help="Keys that only repeat; seed and folds.")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option("--where", metavar="KEY=VALUE", help="Only members with this value.")
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option("--against", metavar="KEY=VALUE", help="The group to compare with.")
    ] = None,
    metric: Annotated[str | None, typer.Option("--metric", help="Another metric than the one tracked.")] = None,
    higher: Annotated[
        bool | None, typer.Option("--higher/--lower", help="Which way it points, if fcurr does not know it.")
    ] = None,
    which: Annotated[str, typer.Option("--which", help="last, best or both.")] = "both",
    aggregate: Annotated[str, typer.Option("--aggregate", help="mean, median, max or min.")] = "mean",
    to: Annotated[Path | None, typer.Option("--to", help="Write tables, plots and a page into this folder.")] = None,
) -> None:
    """Compare what runs and studies found: means, intervals, ranks, and paired differences over seeds."""
    from fcurr_cli import studies

    studies.compare(
        folders,
        by=by or (),
        across=across,
        over=over or (),
        repeats=repeats,
        where=where or (),
        against=against or (),
        metric=metric,
        higher=higher,
        which=which,
        aggregate=aggregate,
        to=to,
    )


@app.command()
def check(config: Config, changes: Changes = None, plugin: Plugins = None, out: Out = Path("runs")) -> None:
    """Say whether CONFIG is right and what would run; touch nothing."""
    from fcurr_cli import commands

    commands.check(config, changes or [], plugin or [], out)


@app.command()
def find(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="learning_rate or batch_size.")],
    config: Config,
    changes: Changes = None,
    plugin: Plugins = None,
    low: Annotated[float | None, typer.Option("--low", help="Of learning_rate: the first rate; 1e-6.")] = None,
    high: Annotated[float | None, typer.Option("--high", help="Of learning_rate: the last rate; 10.")] = None,
    iterations: Annotated[
        int | None, typer.Option("--iterations", help="Of learning_rate: the steps from low to high; 200.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", metavar="BYTES", help="Of batch_size: memory it may take; what is free, or half of it."
        ),
    ] = None,
    most: Annotated[
        int | None, typer.Option("--most", metavar="SAMPLES", help="Of batch_size: the largest that is tried.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Find a learning rate by a range test, or a batch size by memory, speed and gradient noise; touch nothing."""
    from fcurr_cli import commands

    asked = {"low": low, "high": high, "iterations": iterations, "limit": limit, "most": most}
    commands.find(what, config, changes or [], plugin or [], asked, as_json)


@app.command()
def ls(
    role: Annotated[str | None, typer.Argument(help="A role, such as pace; all if left out; or `runs`.")] = None,
    out: Out = Path("runs"),
) -> None:
    """List the components, a line each; or, with `runs`, the runs and studies of a folder."""
    from fcurr_cli import commands, studies

    if role == "runs":
        studies.runs(out)
    else:
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
