"""Programs as jobs of SLURM, or of this machine if there is none, by submitit.

A job that comes to its time limit is told so by a signal, ends its step, saves, and is put into the queue again, where
it goes on from its checkpoint. The conductor tells jobs to stop by a file.
"""

import contextlib
import shutil
import signal
import tempfile
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fcurr.errors import BadInput
from fcurr.io import engines, signals
from fcurr.io.engines import Away, Ended, Engine, Job
from fcurr.io.performing import Place

LOGS = "jobs"  # folder of the study, for what jobs are given and print
MINUTES, BEFORE = 60, 90  # time limit of a job; seconds before it at which the signal comes
REQUEUES = 100_000  # a job that is told in time has saved what it did, so it may come back as often as it must
LOOK_EVERY = {"slurm": 1.0, "local": 0.05}  # seconds
LIMIT = tuple(getattr(signal, name, 0) for name in ("SIGUSR1", "SIGUSR2"))


class Task:
    """What a job does. submitit asks `checkpoint` what to put into the queue when the time is over."""

    def __call__(self, job: Job, place: Place, begun: Away) -> Ended | Exception:
        found = engines.performed_away(job, place, begun)
        if isinstance(found, Ended) and found.stopped in LIMIT:
            signal.raise_signal(found.stopped)  # all is on the disk: to submitit's own handler, which ends the process
        return found

    def checkpoint(self, job: Job, place: Place, begun: Away) -> Any:
        """The same once more."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job, place, begun)


def engine(jobs: int, options: Mapping[str, Any]) -> Engine:
    """At most `jobs` jobs at a time. Options: `cluster`, slurm or local; `signal_delay_s`, how long before the limit
    the signal comes; and what submitit's AutoExecutor takes: timeout_min, cpus_per_task, gpus_per_node, mem_gb,
    slurm_partition and other slurm_... ."""
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise BadInput('--engine submitit needs submitit: pip install "fcurr[submitit]"') from None
    chosen = {"timeout_min": MINUTES, "signal_delay_s": BEFORE, **options}
    cluster = chosen.pop("cluster", "slurm" if shutil.which("srun") else "local")
    if cluster not in LOOK_EVERY:
        raise BadInput(f"--engine submitit: cluster is {' or '.join(LOOK_EVERY)}, not {cluster}")
    with tempfile.TemporaryDirectory() as trial:  # what is wrong with options is said before anything is begun
        _executor(cluster, Path(trial), chosen)
    threads = chosen.get("cpus_per_task", 1 if cluster == "slurm" else engines.threads(jobs))
    made: dict[str, Any] = {}
    held: dict[str, Any] = {}
    cancelled: set[str] = set()
    stopping = False

    def start(job: Job, place: Place) -> str:
        if not made:
            made["bell"] = engines.hung(place.study)
            made["executor"] = _executor(cluster, place.study.resolve() / LOGS, chosen)
        there, begun = engines.away(place, made["bell"])
        with signals.undisturbed():
            submitted = _submitted(made["executor"], job, there._replace(threads=place.threads or threads), begun)
        held[submitted.job_id] = submitted
        return submitted.job_id

    def ended(tickets: Collection[str]) -> dict[str, Ended]:
        over = [ticket for ticket in tickets if ticket in cancelled or held[ticket].done()]
        if not over:
            time.sleep(LOOK_EVERY[cluster])
        return {ticket: _ended(held.pop(ticket), ticket in cancelled) for ticket in over}

    def _ended(job: Any, gone: bool) -> Ended:
        found = engines.outcome(Ended(stopped=signal.SIGTERM) if gone else _result(job, cluster), stopping)
        _clean(job, logs=bool(found.lost))
        return found

    def close(stop: bool) -> None:
        nonlocal stopping
        for job in [] if cluster == "local" else held.values():
            if stopping or job.state == "PENDING":  # asked a second time, all end at once
                job.cancel(check=False)
                cancelled.add(job.job_id)
        stopping = True
        if made and stop:
            engines.ring(made["bell"])
        elif made:
            engines.take_down(made["bell"])
            _tidy(Path(made["executor"].folder))

    return Engine(jobs, start, ended, close)


def _executor(cluster: str, folder: Path, options: Mapping[str, Any]) -> Any:
    import submitit

    own = {key: value for key, value in options.items() if key != "signal_delay_s"}
    limit, before = options["timeout_min"], options["signal_delay_s"]
    if before >= 60 * limit:
        raise BadInput(
            f"--engine submitit: signal_delay_s = {before} seconds before the limit are not within timeout_min = "
            f"{limit} minutes"
        )
    try:
        if cluster == "local":
            found = submitit.LocalExecutor(folder, max_num_timeout=REQUEUES)
            kept = {key: value for key, value in own.items() if not key.startswith("slurm_")}
            found.update_parameters(signal_delay_s=before, **kept)
        else:
            found = submitit.AutoExecutor(folder, cluster, slurm_max_num_timeout=REQUEUES)
            found.update_parameters(slurm_signal_delay_s=before, **own)
    except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as wrong:
        raise BadInput(f"--engine submitit: {_line(wrong)}") from None
    return found


def _submitted(executor: Any, *arguments: Any) -> Any:
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        return executor.submit(Task(), *arguments)
    except (FailedJobError, FailedSubmissionError) as wrong:
        raise BadInput(f"the job was not taken: {_line(wrong)}") from None


def _result(job: Any, cluster: str) -> Ended | Exception:
    """What a job that is over gave."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    at_once = cluster == "local" and not job.paths.result_pickle.exists()  # else a network may be late with it
    try:
        if not at_once:
            return job.result()
        said = "it went away (out of memory, or killed)"
    except FailedJobError as wrong:
        said = str(wrong).partition("-" * 22)[2].partition("-" * 22)[0].strip().splitlines()[-1]
    except UncompletedJobError:
        said = f"it is {job.state}"
    return Ended(lost=f"job {job.job_id}: {said}; it printed {job.paths.stderr}")


def _clean(job: Any, *, logs: bool) -> None:
    """Removes what a job was given and gave; its logs stay where they may tell something."""
    paths = job.paths
    printed = [] if logs else [paths.stdout, paths.stderr]
    for path in (paths.submitted_pickle, paths.result_pickle, paths.submission_file, *printed):
        path.unlink(missing_ok=True)


def _tidy(folder: Path) -> None:
    """Removes the folder of jobs, if there is nothing to read in it."""
    for link in folder.glob(".submission_file_*"):
        if not link.exists():  # what it leads to
            link.unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()


def _line(wrong: Exception) -> str:
    return next((line.strip() for line in str(wrong).splitlines() if line.strip()), type(wrong).__name__)
