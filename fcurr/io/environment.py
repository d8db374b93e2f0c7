"""Where a run was made."""

import importlib.metadata
import os
import platform
import subprocess
import sys

import torch

PACKAGES = ("fcurr", "torch", "numpy", "optree", "safetensors", "scikit-learn", "pyarrow", "matplotlib")


def where() -> dict[str, str]:
    """The process, its machine, and the versions that numbers may depend on."""
    versions = {package: importlib.metadata.version(package) for package in ("fcurr", "torch")}
    return {"host": platform.node(), "process": str(os.getpid()), **versions, "threads": str(torch.get_num_threads())}


def describe() -> dict[str, str]:
    """Versions, machine, threads, and the state of the git checkout one stands in."""
    facts = {"python": platform.python_version(), "platform": platform.platform(), "command": " ".join(sys.argv)}
    for package in PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    facts |= {"cores": str(os.cpu_count()), "threads": str(torch.get_num_threads())}
    for key, command in {"git commit": ["rev-parse", "HEAD"], "git changes": ["status", "--porcelain"]}.items():
        try:
            said = subprocess.run(["git", *command], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            break
        if said.returncode == 0:
            facts[key] = said.stdout.strip() if key == "git commit" else f"{len(said.stdout.splitlines())} files"
    return facts
