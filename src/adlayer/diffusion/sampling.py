"""How to sample: the settings of a generation, and the presets."""

from __future__ import annotations

from dataclasses import dataclass

from adlayer.diffusion.solvers import EulerMaruyama, Heun, Multistep, Solver
from adlayer.errors import UserError

SOLVERS = ("multistep", "heun", "euler")


@dataclass(frozen=True)
class Sampling:
    """How to sample.

    ``steps`` network steps with ``solver``, noise levels from the uniform limit down to ``sigma_min`` Å on a grid of
    exponent ``rho``, or the published ones (``published_levels``). ``stochasticity`` is the churn of Heun and the η
    of the multistep solver. ``energy`` (eV per overlayer atom above the lowest) and ``fractions`` (of the elements but
    the first) condition the denoiser, the energy condition with ``weight`` of classifier-free guidance (1: plainly
    conditional; 0 or ``energy=None``: none). ``guidance`` is η of the force guidance in Å²/eV below ``guidance_gate``
    Å; ``corrector`` Langevin steps follow each step below 0.5 Å. ``relax_steps`` bounds the relaxation in the learned
    force field at the end.

    Of ``starts`` samples, each relaxed, a structure is the lowest in learned energy. ``refine`` rounds follow: a round
    noises the overlayer to a level drawn between 0.4 and 0.9 Å, denoises it in ``refine_steps`` steps, relaxes, and
    keeps what is lower. It is basin hopping with moves that the denoiser proposes, and costs no force call of a real
    calculator. A share ``symmetry`` of the starts is drawn, and refined in the first half of the rounds, with a
    symmetry of the substrate (:mod:`adlayer.structures.orbits`). Without ``relax_steps`` a structure is one sample as
    it is.
    """

    steps: int = 50
    solver: str = "multistep"
    stochasticity: float = 1.0
    sigma_min: float = 0.03
    rho: float = 5.0
    published_levels: bool = False
    energy: float | None = 0.0
    weight: float = 1.0
    fractions: tuple[float, ...] | None = None
    guidance: float = 0.0
    guidance_gate: float | None = 0.5
    corrector: int = 0
    relax_steps: int = 100
    starts: int = 1
    refine: int = 0
    refine_steps: int = 12
    symmetry: float = 0.0


PRESETS = {
    "default": Sampling(steps=12, starts=6, refine=32, symmetry=0.8),
    "fast": Sampling(steps=12, starts=6, refine=10, refine_steps=6, symmetry=0.8),
    "paper": Sampling(
        steps=1000, solver="euler", published_levels=True, energy=None, guidance=1e-4, guidance_gate=None, relax_steps=0
    ),
}


def solver_of(settings: Sampling) -> Solver:
    """The solver that the settings name.

    Raises
    ------
    UserError
        If there is none of that name.
    """
    if settings.solver == "multistep":
        return Multistep(eta=settings.stochasticity)
    if settings.solver == "heun":
        return Heun(churn=min(settings.stochasticity, 0.41))
    if settings.solver == "euler":
        return EulerMaruyama()
    raise UserError(f'solver "{settings.solver}" is unknown: choose one of {", ".join(SOLVERS)}')
