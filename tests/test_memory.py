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

KEEP
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for mebibytes in range(1, 31):  # each larger than all that were freed before: 119,040 pages in all
    torch.ones(mebibytes * 2**18)
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
    pages = 30 * 256  # of the largest block, a 15th of all
    assert found["with"] < 4 * pages < 12 * pages < found["without"], found
