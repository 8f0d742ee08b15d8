"""Chains on their way, kept from time to time: a tile that was stopped goes on, too."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from inference.evidence.kept import Kept


class Midway:
    """The state of one tile's chains between two temperatures, with torch's random state.

    Args:
        kept: where it is kept.
        name: of the part.
        device: of the chains.
    """

    def __init__(self, kept: Kept, name: str, device: torch.device):
        self.kept, self.name, self.device = kept, name, device

    def resume(self) -> tuple[int, list[Tensor]] | None:
        """How many temperatures are done, and the state there; None at the start."""
        held = self.kept.get(self.name, self.device)
        if held is None:
            return None
        done, cpu, *tensors = held
        torch.set_rng_state(cpu.cpu())
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors.pop(0).cpu(), self.device)
        return int(done), tensors

    def keep(self, done: int, tensors: Sequence[Tensor]) -> None:
        """Keep the state, if it is time to."""
        if not self.kept.due:
            return
        states = [torch.get_rng_state()]
        if self.device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self.device))
        self.kept.put(self.name, [torch.tensor(done), *states, *tensors])

    def finish(self) -> None:
        """The tile is done: its weights are kept, and this no more."""
        self.kept.drop(self.name)
