"""Functions of tensors, freed of Python: the operations they consist of, in a row.

A function is traced once (make_fx) and written down as a plain Python function that calls those operations one after
another, and lets go of every tensor after its last use. The numbers are the same bit for bit.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import make_fx

from fcurr import tree

_ALIASES = (torch.ops.aten.detach.default, torch.ops.aten.alias.default, torch.ops.aten.lift_fresh.default)
_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default, torch.ops.aten.expand.default)
_TURNED = torch.ops.aten.t.default


class Traced(NamedTuple):
    """The operations of a function, for arguments of certain sizes."""

    run: Callable[[list[Tensor]], list[Tensor]]  # empties the list it is given
    rebuild: Callable[[list[Tensor]], Any]
    module: fx.GraphModule  # the same, for those who read graphs

    def __call__(self, *arguments: Any) -> Any:
        return self.give([*arguments])

    def give(self, arguments: list[Any]) -> Any:
        """The same, for arguments in a list, which is emptied: if nobody else holds them, a tensor's memory is free
        after its last use."""
        leaves = tree.leaves(tuple(arguments))
        arguments.clear()
        return self.rebuild(self.run(leaves))


def traced(function: Callable[..., Any], *examples: Any) -> Traced:
    """The function as what it consists of, for arguments of the sizes of these examples.

    Like torch.compile it fixes what Python decides: the function must not decide by the values of tensors.
    """
    leaves, rebuild = tree.flatten(examples)
    built: list[Callable[[list[Tensor]], Any]] = []

    def flat(*given: Tensor) -> list[Tensor]:
        found, build = tree.flatten(function(*rebuild([*given])))
        built.append(build)
        return found

    module = make_fx(flat)(*(leaf.detach() for leaf in leaves))  # one tensor given twice would be one argument
    simple = fx.GraphModule(module, _simpler(module.graph))
    return Traced(_function(simple.graph, simple), built[-1], simple)


def compiled(operations: Traced) -> Traced:
    """The same, fused by torch.compile: numbers equal to rounding, after some seconds of compiling."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(operations.module.graph, {}))
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.add.Tensor and "alpha" in node.kwargs:
            a, b = node.args  # inductor of torch 2.13 forgets the alpha of add(a, b @ c, alpha)
            with graph.inserting_before(node):
                scaled = graph.call_function(torch.ops.aten.mul.Tensor, (b, node.kwargs["alpha"]))
                node.replace_all_uses_with(graph.call_function(torch.ops.aten.add.Tensor, (a, scaled)))
            graph.erase_node(node)
    fused = torch.compile(fx.GraphModule(operations.module, graph), fullgraph=True)

    def run(given: list[Tensor]) -> list[Tensor]:
        leaves = [*given]
        given.clear()
        return list(fused(*leaves))

    return operations._replace(run=run)


def _simpler(graph: fx.Graph) -> fx.Graph:
    """Without aliases, views of the same shape, transposes of transposes, sums with zeros, and what nobody uses."""
    for node in graph.nodes:
        source: Any = node.args[0] if node.args else None
        if not isinstance(source, fx.Node):
            continue
        if node.target in _ALIASES or (node.target in _VIEWS and _alike(node, source)):
            node.replace_all_uses_with(source)
        elif node.target is _TURNED and source.target is _TURNED:
            node.replace_all_uses_with(source.args[0])
        elif node.target is torch.ops.aten.add.Tensor and _alike(node, source) and _tap(source, node.args[1]):
            node.replace_all_uses_with(source)
    graph.eliminate_dead_code(is_impure_node=_matters)
    return graph


def _alike(node: fx.Node, source: fx.Node) -> bool:
    """Whether two nodes give tensors of one shape and type."""
    one, other = (own.meta.get("val") for own in (node, source))
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return False
    return one.shape == other.shape and one.dtype == other.dtype


def _tap(source: fx.Node, zeros: Any) -> bool:
    """Whether a sum adds zeros that were made for it (fcurr.ghost) to what nobody else sees; -0 would become 0."""
    made = isinstance(zeros, fx.Node) and zeros.target is torch.ops.aten.zeros.default and len(zeros.users) == 1
    fresh = isinstance(source.target, OpOverload) and not _aliases(source.target)
    return made and fresh and len(source.users) == 1


def _matters(node: fx.Node) -> bool:
    """Whether a node that nobody uses must stay: not if it only writes into a new tensor that nobody else uses."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return node.is_impure()
    if not node.target._schema.is_mutable:
        return False
    source: Any = node.args[0]
    if not isinstance(source, fx.Node) or len(source.users) > 1 or not node.target.__name__.split(".")[0].endswith("_"):
        return True
    return not isinstance(source.target, OpOverload) or _aliases(source.target)


def _aliases(operation: OpOverload) -> bool:
    return any(one.alias_info is not None for one in operation._schema.returns)


def _function(graph: fx.Graph, module: fx.GraphModule) -> Callable[[list[Tensor]], list[Tensor]]:
    """A graph as a Python function of a list of its arguments."""
    known: dict[str, Any] = {}
    names: dict[fx.Node, str] = {}

    def constant(value: Any) -> str:
        known[name := f"k{len(known)}"] = value
        return name

    def written(value: Any) -> str:
        if isinstance(value, fx.Node):
            return names[value]
        if isinstance(value, list | tuple) and _holds_node(value):
            return f"[{', '.join(map(written, value))}]"
        return constant(value)

    lines = ["def run(given):"]
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    names |= {node: f"v{place}" for place, node in enumerate(graph.nodes)}
    lines.append(f"    {''.join(f'{names[node]}, ' for node in inputs)} = given" if inputs else "    pass")
    lines.append("    given.clear()")
    dead = _last_uses(graph)
    for node in graph.nodes:
        if node.op == "call_function":
            operation = getattr(node.target, "_op", node.target)  # without a Python call around it
            arguments = [*map(written, node.args), *(f"{key}={written(value)}" for key, value in node.kwargs.items())]
            lines.append(f"    {names[node]} = {constant(operation)}({', '.join(arguments)})")
        elif node.op == "get_attr":
            lines.append(f"    {names[node]} = {constant(_attribute(module, str(node.target)))}")
        elif node.op == "output":
            lines.append(f"    return [{', '.join(map(written, node.args[0]))}]")
        if dead[node] and node.op != "output":
            lines.append(f"    del {', '.join(names[one] for one in dead[node])}")
    exec(compile("\n".join(lines), "<traced>", "exec"), known)
    return known["run"]


def _last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """node -> the nodes that nobody needs after it."""
    found: dict[fx.Node, list[fx.Node]] = {node: [] for node in graph.nodes}
    used: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        for other in (*node.all_input_nodes, node):
            if other not in used:
                used.add(other)
                found[node].append(other)
    return found


def _holds_node(values: Any) -> bool:
    return any(
        isinstance(value, fx.Node) or (isinstance(value, list | tuple) and _holds_node(value)) for value in values
    )


def _attribute(module: fx.GraphModule, path: str) -> Any:
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part)
    return found
