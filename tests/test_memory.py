"""Freed memory stays with the process, so that its pages are not cleared anew."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

# The file alone: other imports may free large blocks of their own.
FILE = Path(__file__).parent.parent / "inference" / "memory.py"
PROGRAM = f"""
import resource, runpy, torch
keep_freed_memory = runpy.run_path({str(FILE)!r})["keep_freed_memory"]

def work():
    held = [torch.ones(2**20) for _ in range(8)]  # 4 MiB each: 1,024 pages

KEEP
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc alone does this")
def test_tensors_that_come_and_go_reuse_their_pages():
    found = {}
    for way, line in (("with", "keep_freed_memory(torch.device('cpu'))"), ("without", "")):
        command = [sys.executable, "-c", PROGRAM.replace("KEEP", line)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found[way] = int(done.stdout)
    assert found["with"] < 1024 * 8 * 2 < found["without"] / 2, found
