"""What is not installed, and what brings it."""

import importlib.util

from fcurr.errors import BadInput


def need(purpose: str, **modules: str) -> None:
    """BadInput if a module that `purpose` needs is not installed; each is given with the extra that brings it."""
    for module, extra in modules.items():
        if importlib.util.find_spec(module) is None:
            raise BadInput(f'{purpose} needs {module}: pip install "fcurr[{extra}]"')
