"""Commands of somebody's own, for tests: what a study of them makes does not depend on what happened on the way."""

from typing import Any

import torch


def numbers(inputs: dict[str, Any], *, size: int) -> dict[str, torch.Tensor]:
    """The first numbers."""
    return {"numbers": torch.arange(size, dtype=torch.float64)}


def scaled(inputs: dict[str, Any], *, factor: float) -> dict[str, torch.Tensor]:
    """What is read, times a factor."""
    return {name: factor * leaf for found in inputs.values() for name, leaf in found.items()}


def total(inputs: dict[str, Any]) -> dict[str, float]:
    """The sum of each thing that is read."""
    return {name: float(sum(leaf.sum() for leaf in found.values())) for name, found in inputs.items()}


def fails(inputs: dict[str, Any]) -> None:
    """Does not work."""
    raise RuntimeError("the disk of the moon is full")


def doubled(values: dict[str, Any]) -> dict[str, Any]:
    """A hook after: an evaluation with one number more."""
    found = values["evaluation"]
    return {"evaluation": found | {"last": found["last"] | {"twice": 2 * found["last"]["accuracy"]}}}


def fewer(values: dict[str, Any]) -> dict[str, Any]:
    """A hook after `prepare`: only the first 50 samples are trained on."""
    found = values["samples"]
    cut = {name: found[name][:50] for name in ("id of train", "label", "true label")}
    return {"samples": found | cut}
