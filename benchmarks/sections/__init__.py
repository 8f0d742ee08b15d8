"""What is measured, section by section."""

from __future__ import annotations

from benchmarks.plan import Probe, Section, Settings
from benchmarks.sections import cost, evidence, gpu, memory, training


def every(settings: Settings, probe: Probe) -> list[Section]:
    """All sections, those that matter most first."""
    return [
        *training.sections(settings, probe),
        *evidence.sections(settings, probe),
        *memory.sections(settings, probe),
        *gpu.sections(settings, probe),
        *cost.sections(settings, probe),
    ]
