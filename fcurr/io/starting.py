"""What a run starts from: weights that another run, or another program, has left."""

import hashlib
from pathlib import Path

import safetensors.torch
from torch import Tensor

from fcurr import tree
from fcurr.errors import BadInput
from fcurr.study.config import Start
from fcurr.transfer import Source


def source(start: Start | None) -> Source | None:
    """The tensors that [start] names, as they are in the file."""
    if start is None:
        return None
    if start.weights:
        return Source(_read(Path(start.weights)), start.weights)
    from fcurr.io import using  # pyarrow

    try:
        found = using.weights(Path(start.run), start.member, start.which)
    except BadInput as wrong:
        raise BadInput(str(wrong), "start.run") from None
    return Source(found.variables, f"member {found.member} of {start.run}, step {found.iteration}")


def digest(tensors: dict[str, Tensor]) -> str:
    """A hash of names, shapes and numbers."""
    found = hashlib.sha256()
    for name, leaf in sorted(tensors.items()):
        found.update(f"{name} {leaf.dtype} {list(leaf.shape)}\n".encode())
        found.update(tree.raw(leaf))
    return found.hexdigest()


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise BadInput(f"{path} is a folder: `run` takes a run's" if path.is_dir() else f"there is no file {path}", _AT)
    try:
        found = safetensors.torch.load_file(path)
    except Exception as wrong:
        first = (str(wrong).splitlines() or [type(wrong).__name__])[0]
        raise BadInput(f"{path} is not a readable .safetensors file: {first}", _AT) from None
    for name, leaf in found.items():
        if not bool(leaf.isfinite().all()):
            raise BadInput(f"{path}: {name} has a value that is not a finite number", _AT)
    return found


_AT = "start.weights"
