"""Programs as tasks of Ray: of a cluster that is there, or of one that lives as long as the study, on this machine.

A task whose worker is lost is not begun again by Ray but by the conductor, who counts and tells. Tasks are told to stop
by a file, which reaches every machine that shares the study's folder.
"""

import math
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fcurr.errors import BadInput
from fcurr.io import engines, progress, signals
from fcurr.io.engines import Ended, Engine, Job
from fcurr.io.performing import Place

OF_A_TASK = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory", "resources": "", "accelerator_type": ""}
KNOCK, PROBE = 5.0, 20.0  # seconds in which somebody must be at an address; in which it must be Ray
STORE = 2**27  # bytes of memory for values that tasks exchange: they exchange none
QUIET = {"log_to_driver": False, "logging_level": "CRITICAL"}
TRIAL = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='CRITICAL')"


def engine(jobs: int, options: Mapping[str, Any]) -> Engine:
    """At most `jobs` tasks at a time. Options: `address` of a cluster (else that of RAY_ADDRESS, else "local", a
    cluster of one's own), and for each task num_cpus, num_gpus, memory, resources, accelerator_type."""
    ray = _ray()
    of_a_task = {"num_cpus": 1, **{key: value for key, value in options.items() if key != "address"}}
    for key in of_a_task:
        if key not in OF_A_TASK:
            raise BadInput(f"--engine ray takes no option `{key}`; it takes address, {', '.join(OF_A_TASK)}")
    address = str(options.get("address") or os.environ.get("RAY_ADDRESS") or "local")
    ours = not ray.is_initialized()
    if ours and address == "local":
        _init(address=address, num_cpus=math.ceil(jobs * of_a_task["num_cpus"]))
    elif ours:
        _reached(address)
        _init(address=address)
    _fits(of_a_task)
    task = ray.remote(max_retries=0, **of_a_task)(engines.performed_away)
    bells: list[Path] = []
    stopping = False

    def start(job: Job, place: Place) -> Any:
        if not bells:
            bells.append(engines.hung(place.study))
        there, begun = engines.away(place, bells[0])
        return task.remote(job, there._replace(threads=place.threads or max(1, int(of_a_task["num_cpus"]))), begun)

    def ended(tickets: Collection[Any]) -> dict[Any, Ended]:
        done, _ = ray.wait(list(tickets), num_returns=1, timeout=0.2)
        return {ticket: engines.outcome(_result(ticket), stopping) for ticket in done}

    def close(stop: bool) -> None:
        nonlocal stopping
        stopping = True
        for bell in bells:
            (engines.ring if stop else engines.take_down)(bell)
        if not stop and ours:
            ray.shutdown()

    return Engine(jobs, start, ended, close)


def _ray() -> Any:
    """Ray, which does not print of itself that a worker is lost: the conductor does."""
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    try:
        import ray
    except ImportError:
        raise BadInput('--engine ray needs ray: pip install "fcurr[ray]"') from None
    return ray


def _reached(address: str) -> None:
    """BadInput if there is no Ray at an address: Ray itself would look for it without end."""
    if address != "auto":
        parts = urlsplit(address if "://" in address else f"//{address}")
        try:
            socket.create_connection((parts.hostname or "", parts.port or 6379), timeout=KNOCK).close()
        except (OSError, ValueError) as wrong:
            raise BadInput(f"there is no Ray cluster at {address}: {getattr(wrong, 'strerror', '') or wrong}") from None
    try:
        tried = subprocess.run([sys.executable, "-c", TRIAL, address], capture_output=True, text=True, timeout=PROBE)
    except subprocess.TimeoutExpired:
        raise BadInput(f"there is no Ray cluster at {address}: what is there does not answer as one") from None
    if tried.returncode:
        said = [line for line in tried.stderr.splitlines() if line.strip()]
        raise BadInput(f"the Ray cluster at {address} cannot be used: {said[-1] if said else tried.returncode}")


def _init(**how: Any) -> None:
    ray = _ray()
    before = signal.getsignal(signal.SIGTERM)  # Ray puts another in its place
    if how["address"] == "local":
        how |= {"include_dashboard": False, "object_store_memory": STORE}
    with signals.undisturbed():
        try:
            ray.init(**how, **QUIET)
        except (OSError, RuntimeError, ValueError) as wrong:
            raise BadInput(f"--engine ray: Ray does not start: {wrong}".splitlines()[0]) from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _fits(of_a_task: Mapping[str, Any]) -> None:
    """Says so if no machine of the cluster has what a task asks for: there may be one later."""
    import ray

    asked = {OF_A_TASK[key]: value for key, value in of_a_task.items() if OF_A_TASK[key]}
    asked |= of_a_task.get("resources", {})
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(name, 0) >= amount for name, amount in asked.items()) for node in nodes):
        wanted = ", ".join(f"{name} {amount}" for name, amount in asked.items())
        progress.say(f"no machine of the Ray cluster has {wanted}, which a task asks for: tasks wait until one has")


def _result(ticket: Any) -> Ended | Exception:
    """What a task gave."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(ticket)
    except RayTaskError as wrong:
        said = str(wrong.cause).strip().splitlines() or [""]
        return Ended(lost=f"its worker failed ({type(wrong.cause).__name__}: {said[-1]})")
    except RayError as wrong:
        return Ended(lost=f"its worker went away (out of memory, or killed: {type(wrong).__name__})")
