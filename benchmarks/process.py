"""The parent's side of a worker process: start, ask, close.

The parent stays small and imports no framework: a child's peak memory counts from its parent's.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks.machine import ROOT, without_paths
from benchmarks.plan import Settings


class WorkerError(Exception):
    """A row's reason, in one line."""


class Worker:
    """One process, which speaks JSON lines; `compiled` is a folder for torch's compiled code."""

    def __init__(self, python: str, settings: Settings, wait_policy: str, compiled: str):
        threads = str(settings.threads)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "NPROC": threads,  # XLA's pool
            "JAX_PLATFORMS": "cpu",
            "BENCHMARK_WAIT_POLICY": wait_policy,
            "TORCHINDUCTOR_CACHE_DIR": compiled,
            "TORCHINDUCTOR_COMPILE_THREADS": "1",  # no pool of processes beside the one measured
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        }
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)
        try:
            self.process = subprocess.Popen(
                [python, "-m", "benchmarks.worker"],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log,
                start_new_session=True,  # so that its compilers end with it
            )
        except OSError as error:
            self.log.close()
            raise WorkerError(f"its interpreter does not start: {error.strerror}") from None

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The reply. Raises `WorkerError`; after one the process is gone or has told its reason."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError(self._last_words()) from None
        found = b""
        while not found.endswith(b"\n"):
            ready, _, _ = select.select([self.process.stdout], [], [], seconds)
            if not ready:
                self.close(kill=True)
                raise WorkerError(f"took longer than {seconds:.0f} s for '{request['do']}'")
            part = os.read(self.process.stdout.fileno(), 2**16)
            if not part:
                raise WorkerError(self._last_words())
            found += part
        reply = json.loads(found)
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply

    def close(self, *, kill: bool = False) -> None:
        """End the process: by the end of its input, or at once."""
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        if not kill:
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                kill = True
        if kill and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.log.close()

    def _last_words(self) -> str:
        code = self.process.wait()
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        said = without_paths(lines[-1].strip())[:200] if lines else "no message"
        return f"its process ended with {code}: {said}"


def interpreter(chosen: str | None) -> str:
    """The peers' interpreter: the option, else $PYRO_VAE_PEERS, else this one."""
    found = chosen or os.environ.get("PYRO_VAE_PEERS") or sys.executable
    # Workers start in the repository; what is no path here is left to be looked up.
    return os.path.abspath(found) if os.path.exists(found) else found
