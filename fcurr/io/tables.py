"""Scores as a table: Apache Parquet, readable by anything."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
from torch import Tensor

from fcurr import curriculum, observe
from fcurr.errors import BadInput
from fcurr.io.predictions import named, tasks, write_table
from fcurr.study.prepare import Prepared


def write_scores(path: Path, prepared: Prepared, scores: Tensor, *, recipe: dict[str, Any], data: str) -> None:
    """Scores as a file."""
    write_table(path, scores_table(prepared, scores, recipe=recipe, data=data))


def scores_table(prepared: Prepared, scores: Tensor, *, recipe: dict[str, Any], data: str) -> pyarrow.Table:
    """A row a training sample: its position in the data, the label as given and before noise, its difficulty (larger is
    harder), and its rank (0 the easiest, 1 the hardest, ties broken at random)."""
    rank = observe.ranks(curriculum.easy_first(scores, seed=prepared.entries["seed"]))
    table = pyarrow.table(
        {
            "id": prepared.id["train"].numpy(),
            **tasks(prepared.train.y, prepared.train),
            "label": named(prepared.train.y, prepared.train),
            "true_label": named(prepared.true, prepared.train),
            "score": scores.numpy(),
            "rank": rank.numpy(),
        }
    )
    facts = {"recipe": json.dumps(recipe, default=str), "data": data, "sense": "larger is harder"}
    return table.replace_schema_metadata(facts)


def write_weights(path: Path, prepared: Prepared, weights: Tensor, losses: Tensor, arms: list[str]) -> None:
    """A row a member and training sample, for the state after the last step: the label as given and before noise, the
    loss, and how much the sample counts."""
    members, samples = weights.shape
    table = pyarrow.table(
        {
            "member": torch.arange(members).repeat_interleave(samples).numpy(),
            "arm": [arm for arm in arms for _ in range(samples)],
            "id": prepared.id["train"].repeat(members).numpy(),
            **{key: names * members for key, names in tasks(prepared.train.y, prepared.train).items()},
            "label": named(prepared.train.y, prepared.train) * members,
            "true_label": named(prepared.true, prepared.train) * members,
            "loss": losses.flatten().cpu().numpy(),
            "weight": weights.flatten().cpu().numpy(),
        }
    )
    write_table(path, table)


def read_scores(path: Path, ids: Tensor) -> Tensor:
    """[train] float64: the scores of these samples, matched by id."""
    try:
        return scores_of(pyarrow.parquet.read_table(path), ids)
    except (KeyError, OSError, pyarrow.ArrowException) as wrong:
        raise BadInput(f"{path} does not hold the scores of this run's samples: {wrong}") from None


def scores_of(table: pyarrow.Table, ids: Tensor) -> Tensor:
    """[train] float64: the scores of these samples in a table, matched by id; KeyError where one is missing."""
    found = dict(zip(table["id"].to_pylist(), table["score"].to_pylist(), strict=True))
    return torch.tensor([found[sample] for sample in ids.tolist()], dtype=torch.float64)


def write_losses(path: Path, ids: Tensor, losses: Tensor) -> None:
    """A row a sample: its position in the data, and a loss."""
    write_table(path, pyarrow.table({"id": ids.numpy(), "loss": losses.cpu().numpy()}))


def read_losses(path: Path, ids: Tensor) -> Tensor:
    """[sample] float32: the losses of these samples, matched by id."""
    try:
        table = pyarrow.parquet.read_table(path)
        found = dict(zip(table["id"].to_pylist(), table["loss"].to_pylist(), strict=True))
        return torch.tensor([found[sample] for sample in ids.tolist()])
    except (KeyError, OSError, pyarrow.ArrowException) as wrong:
        raise BadInput(f"{path} does not hold the losses of this run's samples: {wrong}") from None
