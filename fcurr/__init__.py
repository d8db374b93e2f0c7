"""Functional curriculum learning: which samples, in what order, how much each counts, and what when the task changes.

Everything is a pure function over explicit state; the modules are the index. `import fcurr` loads none of them,
`fcurr.pacing.linear` loads what it needs.
"""

import importlib
import pkgutil

__version__ = "0.1.0"

_ROOMS = frozenset(module.name for module in pkgutil.iter_modules(__path__))


def __getattr__(name: str):
    if name in _ROOMS:
        return importlib.import_module(f"fcurr.{name}")
    raise AttributeError(f"module 'fcurr' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOMS])
