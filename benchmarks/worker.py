"""One row's process: it is told what to prepare, then runs slices, by JSON lines.

    {"do": "prepare", "worker": "by_hand", "task": {...}} -> {"note": ..., "maxrss_mib": ...}
    {"do": "run", "n": 200} -> {"seconds": ..., "cpu_seconds": ..., "value": ..., "maxrss_mib": ...}
    {"do": "probe", "packages": [...]} -> {"versions": ..., "engines": ..., "cuda": ...}

While it waits for a line it uses no processor. A failure is {"error": one line}.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

Run = Callable[[int], dict[str, Any]]


def main() -> None:
    # What libraries print must not come between the JSON lines.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # A start-up hook of the environment may have set a policy of its own.
    policy = os.environ.pop("BENCHMARK_WAIT_POLICY", "default")
    os.environ.pop("OMP_WAIT_POLICY", None)
    if policy != "default":
        os.environ["OMP_WAIT_POLICY"] = policy
    current: Run | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "prepare":
                current = None  # what it held is freed first
                current, reply = prepare(request["worker"], request["task"])
            elif request["do"] == "run":
                assert current is not None, "nothing is prepared"
                reply = timed(current, request["n"])
            else:
                reply = probe(request["packages"])
        except Exception as error:  # whatever a peer raises is its row's reason
            reply = {"error": in_one_line(error)}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def prepare(worker: str, task: dict[str, Any]) -> tuple[Run, dict[str, Any]]:
    """Build what a row needs and warm it up; the slices follow."""
    started = time.perf_counter()
    module = importlib.import_module(f"benchmarks.workers.{worker}")
    run, note = module.prepare(task)
    seconds = time.perf_counter() - started
    return run, {"seconds": seconds, "note": note, "maxrss_mib": peak_mib()}


def timed(run: Run, n: int) -> dict[str, Any]:
    """One slice. A row that knows better tells its own `seconds`."""
    used, started = time.process_time(), time.perf_counter()
    found = run(n)
    seconds = time.perf_counter() - started
    cpu = time.process_time() - used
    return {
        "seconds": seconds,
        "wall_seconds": seconds,
        "cpu_seconds": cpu,
        "maxrss_mib": peak_mib(),
        **found,
    }


def peak_mib() -> float:
    """The most memory that this process has held so far."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def probe(packages: list[str]) -> dict[str, Any]:
    """Versions of what is installed, our engines, and the CUDA device if there is one."""
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    found: dict[str, Any] = {"versions": versions, "engines": {}, "cuda": None}
    if "torch" in versions:
        import torch

        if torch.cuda.is_available():
            found["cuda"] = torch.cuda.get_device_name(0)
    if "pyro-vae" in versions:
        from benchmarks.workers.ours import engines

        found["engines"] = engines()
    return found


def in_one_line(error: BaseException) -> str:
    from benchmarks.machine import without_paths

    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = without_paths(lines[0] if lines else "no message")
    return f"{type(error).__name__}: {text[:200]}"


if __name__ == "__main__":
    main()
