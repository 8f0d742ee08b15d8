"""What the numbers were measured on: processor, memory, load, versions of the source."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def facts() -> dict[str, Any]:
    """Of this machine; no names or paths of it."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else _cores(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",
        "python": platform.python_version(),
        "compiler": _first_line(["g++", "--version"]),
    }


def commit() -> str | None:
    """The commit measured, with a mark where files differ from it; None outside a checkout."""
    found = _first_line(["git", "rev-parse", "HEAD"])
    if found is None:
        return None
    changed = _first_line(
        ["git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results"]
    )
    return f"{found} with changes" if changed else found


def load() -> list[float]:
    """Load averages over 1, 5 and 15 minutes; the benchmark's own work is part of them."""
    return [round(value, 2) for value in os.getloadavg()]


def busy_seconds() -> float | None:
    """Processor seconds that everything on this machine has used, where the system tells."""
    try:
        words = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
    except OSError:
        return None
    user, nice, system, _idle, _wait, irq, soft, *rest = (int(word) for word in words[1:])
    stolen = rest[0] if rest else 0
    return (user + nice + system + irq + soft + stolen) / os.sysconf("SC_CLK_TCK")


def without_paths(text: str) -> str:
    """A message in which a path of this machine is its last part."""
    return re.sub(r"(?<![\w.:/])(?:/[\w.+@~-]+){2,}", lambda m: m[0].rsplit("/", 1)[1], text)


def _cores() -> int:
    return os.cpu_count() or 1


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or "unknown"

    def field(name: str) -> str | None:
        found = re.search(rf"^{name}\s*: (.*)$", text, re.MULTILINE)
        return found[1].strip() if found else None

    model = field("model name") or platform.processor() or "unknown"
    widest = next((f for f in ("avx512f", "avx2") if f in (field("flags") or "").split()), "")
    kind = ", ".join(
        part
        for part in (f"family {field('cpu family')} model {field('model')}", widest)
        if part and "None" not in part
    )
    return f"{model} ({kind})" if kind else model


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return None


def _first_line(command: list[str]) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    return lines[0] if done.returncode == 0 and lines else None
