"""States as files: safetensors, one entry a leaf, named as code would reach it. No pickle is ever read."""

import json
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch

from fcurr import tree
from fcurr.errors import BadInput
from fcurr.io import files

T = TypeVar("T")


def save(path: Path, state: Any, **facts: Any) -> None:
    """Written whole or not at all; facts are kept beside the tensors, as JSON."""
    tensors = {name: leaf.detach().cpu().contiguous().clone() for name, leaf in tree.named(state).items()}
    files.write(path, safetensors.torch.save(tensors, metadata={"fcurr": json.dumps(facts)}))


def load(path: Path, like: T) -> T:
    """The state in a file, built like another; BadInput if the file is broken or holds a state of another kind."""
    try:
        return tree.fill(like, safetensors.torch.load(path.read_bytes()))
    except (KeyError, ValueError, safetensors.SafetensorError) as wrong:
        missing = f"{wrong} is missing" if isinstance(wrong, KeyError) else wrong
        raise BadInput(f"{path} is not a checkpoint of this run: {missing}") from None
