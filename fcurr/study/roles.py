"""Roles: where a short name is looked up, and what flows into what it names.

There is no registry: the component `root` of the role `pace` is the function `root` of fcurr.pacing. A role's functions
are the public ones of its module whose positional parameters are what flows in that role; `components` reads them from
the source, without importing anything.
"""

import ast
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import NamedTuple


class Role(NamedTuple):
    module: str  # where short names are looked up
    flows: tuple[tuple[str, ...], ...]  # the positional parameters a function of this role may have
    answers: str  # the question it answers
    given: frozenset[str]  # what the run gives by name to a function that asks for it


_RESULTS = ("Dataset", "Model", "Optimizer", "Logger", "Reweighting")
_EARLY = frozenset({"seed"})
_SHAPED = _EARLY | {"features", "classes", "task"}
_LONG = _SHAPED | {"dataset_size", "total_iterations", "batch_size"}
_WHOLE = _LONG | {"model", "loss"}

ROLES = {
    "data": Role("fcurr.io.datasets", ((),), "which samples are there?", _EARLY),
    "split": Role("fcurr.data.splits", (("y",),), "which train, which choose, which judge?", _SHAPED | {"groups"}),
    "noise": Role("fcurr.data.labels", (("y",),), "which labels are made wrong?", _SHAPED),
    "clean": Role("fcurr.data.clean", (("y",),), "which are known to be right?", _SHAPED | {"among"}),
    "imbalance": Role("fcurr.data.imbalance", (("y",),), "which classes are made rare?", _SHAPED),
    "scaling": Role("fcurr.data.scalings", (("x",),), "in what units are the samples?", _SHAPED),
    "augmentation": Role("fcurr.data.augmentations", (("batch", "place"),), "what is changed at random?", _SHAPED),
    "model": Role("fcurr.models", ((),), "what is trained?", _SHAPED),
    "loss": Role("fcurr.losses", (("outputs", "y"),), "what is made small?", _LONG | {"counts", "heads"}),
    "metric": Role("fcurr.metrics", (("outputs", "y"),), "how good is it?", _SHAPED),
    "optimizer": Role("fcurr.optim", ((),), "how do gradients move parameters?", _WHOLE),
    "learning_rate": Role("fcurr.schedules", (("iteration",),), "how far, and when?", _WHOLE),
    "score": Role("fcurr.scoring", (("params", "batch"), ("data",)), "how hard is a sample?", _WHOLE | {"fit"}),
    "weighting": Role(
        "fcurr.weighting",
        (("past", "losses", "batch"),),
        "how much does each count?",
        _WHOLE | {"counts", "irreducible"},
    ),
    "threshold": Role("fcurr.weighting", (("past", "losses"),), "which losses are large?", _WHOLE),
    "share": Role("fcurr.schedules", (("iteration",),), "how much, and when?", _WHOLE),
    "schedule": Role("fcurr.schedules", (("iteration",),), "how much, and when?", _WHOLE),
    "reweighting": Role("fcurr.bilevel.methods", ((),), "how is that learned?", _WHOLE),
    "order": Role("fcurr.curriculum", (("scores",),), "which samples first?", _WHOLE),
    "sampling": Role("fcurr.curriculum", (("order", "y"),), "in which class balance?", _WHOLE),
    "pace": Role("fcurr.pacing", (("state", "iteration"),), "how many are in play?", _WHOLE),
    "observer": Role("fcurr.views", (("state",), ("before", "after", "event")), "what is looked at?", _WHOLE),
    "logger": Role("fcurr.io.loggers", ((),), "where else are metrics written?", _EARLY | {"folder", "name"}),
}


class Component(NamedTuple):
    role: str
    name: str
    module: str  # where it is written
    summary: str  # the first sentence of its docstring


@cache
def components(role: str) -> list[Component]:
    """The components of a role, in the order they are written in."""
    found = []
    for module, source in _sources(ROLES[role].module):
        tree = ast.parse(source)
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                continue
            flows = tuple(argument.arg for argument in (*node.args.posonlyargs, *node.args.args))
            if flows in ROLES[role].flows and node.args.kwarg is None and _returns_component(node):
                text = ast.get_docstring(node) or ""
                found.append(Component(role, node.name, module, " ".join(text.split("\n\n")[0].split())))
    return found


def names(role: str) -> list[str]:
    """The short names of a role."""
    return [component.name for component in components(role)]


def _returns_component(node: ast.FunctionDef) -> bool:
    """A role without flowing arguments is told by what is returned: a Dataset, a Model, an Optimizer, and so on."""
    if node.args.args or node.args.posonlyargs:
        return True
    return isinstance(node.returns, ast.Name) and node.returns.id in _RESULTS


def _sources(module: str) -> Iterator[tuple[str, str]]:
    """(module name, source) of a module, or of every file of a package; found beside fcurr's own files."""
    *folders, name = module.split(".")[1:]
    folder = resources.files("fcurr").joinpath(*folders)
    path = folder.joinpath(name)
    if not path.is_dir():
        yield module, folder.joinpath(f"{name}.py").read_text()
        return
    for file in sorted(path.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".py") and not file.name.startswith("_"):
            yield f"{module}.{file.name[:-3]}", file.read_text()
