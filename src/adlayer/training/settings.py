"""How to train."""

from __future__ import annotations

from dataclasses import dataclass

from adlayer.diffusion.kernels import ExactKernel, Kernel, PaperKernel


@dataclass(frozen=True)
class Settings:
    """How to train; ``steps`` or ``seconds`` ends it, whichever is given.

    ``batch`` structures for the denoiser and ``force_batch`` frames for the force field make a step; a network with 0
    is not trained.
    """

    steps: int | None = None
    seconds: float | None = None
    batch: int = 32
    force_batch: int = 8
    learning_rate: float = 1e-3
    warmup: int = 100
    average: float = 0.999
    weight_decay: float = 1e-2
    validate_every: int = 250  # steps
    repeats: tuple[tuple[int, int], ...] = ((1, 1), (1, 1), (2, 1), (1, 2))
    drop_conditions: float = 0.3
    sigma_min: float = 0.02  # Å
    kernel: str = "exact"
    seed: int = 0
    start: str | None = None  # fingerprint of the model to begin with

    def fraction(self, step: int, elapsed: float) -> float:
        """How much is done after so many steps and seconds, from 0 to 1."""
        by_steps = 0.0 if self.steps is None else step / max(self.steps, 1)
        by_seconds = 0.0 if self.seconds is None else elapsed / self.seconds
        return min(1.0, max(by_steps, by_seconds))


def make_kernel(name: str) -> Kernel:
    """The forward process by name: ``exact`` or ``paper``."""
    kernels: dict[str, type[Kernel]] = {"exact": ExactKernel, "paper": PaperKernel}
    return kernels[name]()
