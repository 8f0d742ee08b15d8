"""How the C library hands memory out."""

from __future__ import annotations

import torch

# The most that glibc learns from, less the header of a block.
LARGEST_BLOCK = 31 * 2**20


def keep_freed_memory(device: torch.device) -> None:
    """Let tensors of some megabytes that come and go reuse memory on the CPU.

    glibc returns blocks above a threshold to the system as soon as they are freed, and the kernel
    clears their pages when they come again: a tenth of an estimate's time on one thread. The
    threshold follows the largest block that was ever freed, up to 32 MiB, so one is freed here; its
    pages are never touched.
    """
    if device.type == "cpu":
        torch.empty(LARGEST_BLOCK, dtype=torch.uint8)
