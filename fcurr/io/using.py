"""What a finished or a stopped run is good for: its weights, as files for others, and what they predict."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow
import pyarrow.csv
import safetensors.torch
import torch
from torch import Tensor, nn

from fcurr import evaluating, joint
from fcurr.errors import BadInput
from fcurr.io import artefacts, checkpoint, files, journal, predictions, store, toml, unlabelled
from fcurr.study.prepare import Prepared
from fcurr.types import Dataset, Model, Params

Which = Literal["best", "last"]


class Weights(NamedTuple):
    """The parameters and buffers of one member."""

    variables: Params
    member: int
    iteration: int  # after which they were those


def weights(folder: Path, member: int | None, which: Which) -> Weights:
    """From the newest checkpoint of a run that can be read. The member that the tracked metric says is best, unless
    one is asked for."""
    if member is None:
        member = _best(folder)
    if (folder / journal.JOURNAL).exists():
        return _of_study(folder, member, which)
    tensors, path = _newest(folder)
    count = len(tensors["state.run.last"])
    if not 0 <= member < count:
        raise BadInput(f"there is no member {member}: {folder} has 0 to {count - 1}")
    roots = ("state.record.best",) if which == "best" else ("state.run.train.params", "state.run.train.buffers")
    found = {}
    for name, leaf in tensors.items():
        root, _, rest = name.partition("[")
        if root in roots:
            found[rest[1:-2]] = leaf[member].clone()
    if not found:
        raise BadInput(f"{path} holds no weights")
    when = "state.record.iteration" if which == "best" else "state.run.train.iteration"
    return Weights(found, member, int(tensors[when][member]))


def _of_study(folder: Path, member: int, which: Which) -> Weights:
    """From the store of a study that has come to its end; members are numbered as in its results."""
    command = _training(folder, member)
    store_of = folder.parent / "store"
    record = artefacts.record(store_of, command["key"])
    if record is None:
        raise BadInput(f"{store_of} does not hold {command['name']} any more")
    model = artefacts.get(store_of, record.outputs["model"])
    found = {name.partition(".")[2]: leaf for name, leaf in model.items() if name.startswith(f"{which}.")}
    return Weights(found, member, int(model["best iteration" if which == "best" else "iterations"]))


def _training(folder: Path, member: int) -> dict[str, Any]:
    """The command that trained a member of a study."""
    if not (folder / store.RESULTS).exists():
        raise BadInput(f"{folder} is a study without results: it has not come to its end")
    members = store.read_json(folder / store.RESULTS)["members"]
    if not 0 <= member < len(members):
        raise BadInput(f"there is no member {member}: {folder} has 0 to {len(members) - 1}")
    numbers = ("member", "iterations", "best_iteration", "last", "best")
    label = {key: value for key, value in members[member].items() if key not in numbers}
    commands = store.read_json(folder / "schedule.json")["commands"]
    for command in commands:
        if command["function"] == "train" and command["label"] == label:
            return command
    raise BadInput(f"{folder} was planned anew since it came to its end: run it again")


def _newest(folder: Path) -> tuple[dict[str, Tensor], Path]:
    wrong: list[str] = []
    for path in reversed(checkpoint.listed(folder / store.CHECKPOINTS)):
        try:
            return checkpoint.read(path), path
        except BadInput as broken:
            wrong.append(str(broken))
    raise BadInput("; ".join(wrong) or f"{folder} has no checkpoint: it is not the folder of a run that has trained")


def _best(folder: Path) -> int:
    """The member with the best validation; the first of equals, 0 before any was evaluated."""
    rows = store.metrics(folder)
    path = folder / store.RESULTS
    if not rows or not path.exists():
        return 0
    found = store.read_json(path)
    key, sign = f"validation_{found['metric']}", 1 if found["higher"] else -1
    valued = [row for row in rows if row[key] is not None]
    return max(valued, key=lambda row: sign * row[key])["member"] if valued else 0


def write_weights(path: Path, found: Weights) -> None:
    """A state dict as safetensors: what nn.Module.load_state_dict takes, under the names of the parameters."""
    data = safetensors.torch.save(
        found.variables, metadata={"member": str(found.member), "iteration": str(found.iteration)}
    )
    files.write(path, data)


def write_onnx(path: Path, found: Weights, prepared: Prepared) -> None:
    """The model with its weights as ONNX, for batches of any size; BadInput if torch cannot export it."""
    try:
        import onnx  # noqa: F401  # pyright: ignore
        import onnxscript  # noqa: F401  # pyright: ignore
    except ImportError:
        raise BadInput('ONNX is written by onnx and onnxscript: pip install "fcurr[onnx]"') from None
    example = prepared.validation.take(torch.arange(min(2, len(prepared.validation.y)))).x
    with files.whole(path) as temporary:
        try:
            torch.onnx.export(
                _Applied(prepared.model, found.variables).eval(),
                (example,),
                str(temporary),
                input_names=["x"],
                output_names=["outputs"],
                dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except Exception as wrong:
            first = (str(wrong).strip().splitlines() or [type(wrong).__name__])[0]
            raise BadInput(f"this model cannot be written as ONNX: {first}") from None


class _Applied(nn.Module):
    """A model's apply with its variables, as torch's exporter wants it."""

    def __init__(self, model: Model, variables: Params) -> None:
        super().__init__()
        self.model, self.names = model, list(variables)
        for place, leaf in enumerate(variables.values()):
            self.register_buffer(f"v{place}", leaf)

    def forward(self, x: Tensor) -> Tensor:
        return self.model.apply({name: getattr(self, f"v{place}") for place, name in enumerate(self.names)}, x)


def predict(
    found: Weights, prepared: Prepared, path: Path, trained: tuple[str, ...] | None, chunk: int
) -> dict[str, list[Any]]:
    """name -> a value a sample of a file: the prediction, and the probability of each class, or the numbers; of several
    tasks, of each."""
    data, model = prepared.train, prepared.model
    x = unlabelled.read(path, trained, data.features)
    with torch.no_grad():
        outputs = torch.cat([model.apply(found.variables, part) for part in x.split(chunk)]).float()
    if not data.heads:
        return _told(outputs, data)
    columns: dict[str, list[Any]] = {}
    for head in data.heads:
        own, _ = joint.alone(data, head)
        columns |= {f"{head.name}: {name}": values for name, values in _told(head.of(outputs), own).items()}
    return columns


def _told(outputs: Tensor, data: Dataset) -> dict[str, list[Any]]:
    """name -> a value a sample, of outputs [sample, output]."""
    if data.task == "regression":
        return dict(zip(data.classes, outputs.T.tolist(), strict=False))
    named = predictions.named(evaluating.predicted(outputs, predictions.kind(data)), data)
    chances = outputs.softmax(-1) if data.task == "classification" else outputs.sigmoid()
    columns = {f"probability of {name}": chances[:, place].tolist() for place, name in enumerate(data.classes)}
    return {"prediction": named, **columns}


def write_predictions(path: Path, columns: dict[str, list[Any]]) -> None:
    """A table, as .parquet or else as .csv."""
    if path.suffix == ".parquet":
        predictions.write_table(path, pyarrow.table(columns))
        return
    flat = {name: [";".join(v) if isinstance(v, list) else v for v in values] for name, values in columns.items()}
    with files.whole(path) as temporary:
        pyarrow.csv.write_csv(pyarrow.table(flat), temporary)


def config(folder: Path, member: int) -> dict[str, Any]:
    """The config of a run, as it was run; of a study, that of a member."""
    if (folder / journal.JOURNAL).exists():
        command = _training(folder, member)
        own = command["config"]
        if "among" in own:
            record = artefacts.record(folder.parent / "store", command["reads"]["choice"][0])
            assert record is not None
            own = own["among"][artefacts.get(folder.parent / "store", record.outputs["choice"])["point"]]["config"]
        return {key: value for key, value in own.items() if key not in ("start", "among")}
    if not (folder / store.CONFIG).exists() or not (folder / store.IDENTITY).exists():
        raise BadInput(f"{folder} is not the folder of a run: it has no {store.CONFIG}")
    return toml.read(folder / store.CONFIG)[0]


def features(table: Any) -> tuple[str, ...] | None:
    """The columns that a run was trained on, if [data] names a table."""
    if not isinstance(table, dict) or table.get("fn") not in ("csv", "parquet"):
        return None
    label, group = table.get("label", "label"), table.get("group")
    labels = (label,) if isinstance(label, str) else tuple(label)
    return unlabelled.columns(Path(table["path"]), labels if group is None else (*labels, group))
