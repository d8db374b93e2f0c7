"""States as files: safetensors, one entry a leaf, named as code would reach it. No pickle is ever read.

A checkpoint is written whole or not at all, and carries a checksum of what it holds. A folder of them keeps the last
two that were due, and the one that was written when the run was asked to stop.
"""

import contextlib
import errno
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import safetensors
import safetensors.torch
from torch import Tensor

from fcurr import tree
from fcurr.errors import BadInput
from fcurr.io import files

T = TypeVar("T")
KEPT = 2  # checkpoints that were due
SUFFIX = ".safetensors"


def save(path: Path, state: Any, **facts: Any) -> None:
    """Written whole or not at all; facts and a checksum are kept beside the tensors, as JSON. OSError if it cannot."""
    tensors = {name: leaf.detach().cpu().contiguous() for name, leaf in tree.named(state).items()}
    metadata = {"fcurr": json.dumps(facts | {"sha256": _digest(tensors)})}
    with files.whole(path) as temporary:
        try:
            safetensors.torch.save_file(unshared(tensors), temporary, metadata)
        except safetensors.SafetensorError as wrong:
            number = re.search(r"os error (\d+)", str(wrong))
            raise OSError(int(number[1]) if number else errno.EIO, f"cannot be written: {wrong}", str(path)) from None


def load(path: Path, like: T) -> T:
    """The state in a file, built like another; BadInput if the file is broken or holds a state of another kind."""
    tensors = read(path)
    try:
        found = tree.fill(like, tensors)
    except (KeyError, ValueError) as wrong:
        missing = f"{wrong} is missing" if isinstance(wrong, KeyError) else wrong
        raise BadInput(f"{path} is not a checkpoint of this run: {missing}") from None
    return tree.map(lambda leaf, place: leaf.to(place.device), found, like)


def read(path: Path) -> dict[str, Tensor]:
    """The tensors in a file, by name; BadInput if they are not what was written."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("fcurr", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (ValueError, safetensors.SafetensorError) as wrong:
        raise BadInput(f"{path} is not a checkpoint: {wrong}") from None
    if not isinstance(facts, dict) or facts.get("sha256") != _digest(tensors):
        raise BadInput(f"{path} is not what was written: its checksum is another")
    return tensors


class Shelf(NamedTuple):
    """A folder of checkpoints, and what has been learned of them."""

    folder: Path
    write: Callable[..., None]  # state, iteration, stopped; returns before it is on the disk
    settle: Callable[[], None]  # returns when everything is on the disk; raises what went wrong


@contextlib.contextmanager
def shelf(folder: Path) -> Iterator[Shelf]:
    """Writes checkpoints in the background, one at a time. What goes wrong is raised by the next write, or at the end.

    States are never changed, so a state can be written while the run goes on; on the host nothing is copied for it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pending: list[Future[None]] = []

    def settle() -> None:
        while pending:
            pending.pop().result()

    def write(state: Any, iteration: int, *, stopped: bool = False) -> None:
        host = tree.map(lambda leaf: leaf.detach().cpu(), state)
        settle()
        name = f"{'stopped' if stopped else 'step'}-{iteration:010}{SUFFIX}"
        pending.append(pool.submit(_keep, folder / name, host, iteration))

    with ThreadPoolExecutor(1, "checkpoint") as pool:
        try:
            yield Shelf(folder, write, settle)
        except BaseException:
            with contextlib.suppress(OSError):
                settle()
            raise
        settle()


def latest(folder: Path, like: T, say: Callable[[str], None], *, due: bool = False) -> T | None:
    """The newest state in a folder that can be read, or None; every file that is passed over is named in what is said.
    `due`: of those only that were written when a checkpoint was due."""
    for path in reversed(listed(folder)):
        if due and path.name.startswith("stopped"):
            continue
        try:
            return load(path, like)
        except BadInput as wrong:
            say(f"{wrong}; the checkpoint before it is used")
    return None


def listed(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: (path.stem.partition("-")[2], path.stem))


def _keep(path: Path, state: Any, iteration: int) -> None:
    """The new one, then only what is kept."""
    save(path, state, iteration=iteration)
    stopped = [old for old in listed(path.parent) if old.name.startswith("stopped")]
    due = [old for old in listed(path.parent) if old not in stopped]
    for old in [*due[:-KEPT], *(old for old in stopped if old != path)]:
        old.unlink(missing_ok=True)


def _digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, kinds and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        leaf = tensors[name]
        digest.update(f"{name} {leaf.dtype} {list(leaf.shape)};".encode())
        digest.update(tree.raw(leaf))
    return digest.hexdigest()


def unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with storages of their own, which safetensors wants: one that is a part of another, or twice there, is
    copied."""
    seen: set[int] = set()
    own = {}
    for name, leaf in tensors.items():
        storage = leaf.untyped_storage()
        whole = storage.nbytes() == leaf.numel() * leaf.element_size() and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        own[name] = leaf if whole else leaf.clone()
    return own
