"""New structures: the reverse diffusion with a trained model on a given substrate.

The substrate is masked: the network sees its atoms, nothing moves them. Overlayer atoms start uniformly in the cell
times the window and end inside it. The relaxation in the learned force field lets the substrate answer, but its
outcome is the overlayer alone, on the bare substrate, as in the training data. Every sample has its own random stream,
keyed by seed, formula and number and drawn on the host; structures are worked on in blocks, on the CPU as large as fit
the processor's cache. Another block size, or another device, changes rounding alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from torch import Tensor

from adlayer.diffusion.guidance import ForceGuidance, classifier_free
from adlayer.diffusion.kernels import Domain, ExactKernel, PaperKernel, uniform
from adlayer.diffusion.schedule import LinearBeta, sigma_grid, sigma_max_for
from adlayer.diffusion.solvers import EulerMaruyama, Heun, Langevin, Multistep, Score, Solver, sample
from adlayer.energies.batched import init, step
from adlayer.errors import UserError
from adlayer.network.graph import Batch, to_batch
from adlayer.network.model import Model, composition_fractions, condition_row
from adlayer.structures.orbits import Orbits, symmetry_groups, draw_orbits, joined, no_symmetry
from adlayer.structures.placement import parse_formula, write_formula
from adlayer.structures.substrate import check_substrate, fixed_mask

SOLVERS = ("multistep", "heun", "euler")
_REFINE_LEVELS = (0.4, 0.9)  # Å: below, a move falls back; above, few are accepted
_FMAX = 0.05  # eV/Å, of learned relaxations
_STAGE = 5  # steps of a relaxation between looks at who goes on
_PATIENCE = 0.33  # eV for each overlayer atom and step taken: who lies further above its target is given up
_BLOCK, _DEVICE_BLOCK_ATOMS = 8, 25_600  # structures worked on together on the CPU; their atoms on an accelerator


@dataclass(frozen=True)
class Sampling:
    """How to sample.

    ``steps`` network steps with ``solver``, noise levels from the uniform limit down to ``sigma_min`` Å on a grid of
    exponent ``rho``, or the published ones (``published_levels``). ``stochasticity`` is the churn of Heun and the η
    of the multistep solver. ``energy`` (eV per overlayer atom above the lowest) and ``fractions`` (of the elements but
    the first) condition the denoiser, the energy condition with ``weight`` of classifier-free guidance (1: plainly
    conditional; 0 or ``energy=None``: none). ``guidance`` is η of the force guidance in Å²/eV below ``guidance_gate``
    Å; ``corrector`` Langevin steps follow each step below 0.5 Å. ``relax_steps`` bounds the relaxation in the learned
    force field at the end. ``refine`` rounds follow, each of which noises the overlayer to a level drawn between 0.4
    and 0.9 Å, denoises it in ``refine_steps`` steps, relaxes, and keeps what is lower in learned energy: basin hopping
    with moves that the denoiser proposes, at no cost in force calls of a real calculator. Without ``relax_steps``
    there is none. A share ``symmetry`` of the samples is drawn, and refined in the first half of the rounds, with a
    symmetry of the substrate (:mod:`adlayer.structures.orbits`).
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
    refine: int = 0
    refine_steps: int = 12
    symmetry: float = 0.0


PRESETS = {
    "default": Sampling(refine=40, symmetry=0.8),
    "paper": Sampling(
        steps=1000, solver="euler", published_levels=True, energy=None, guidance=1e-4, guidance_gate=None, relax_steps=0
    ),
}


@dataclass(frozen=True)
class Generated:
    """What :func:`generate` returns beside the structures."""

    structures: list[Atoms]
    n_network_calls: int  # denoiser evaluations, one for each structure of a batch
    n_force_calls: int  # learned force-field calls for all structures, guidance and relaxation


def sample_seed(seed: int, formula: str, number: int) -> np.random.Generator:
    """The random stream of one sample."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(zlib.crc32(formula.encode()), number, 1)))


def check_request(model: Model, substrate: Atoms, formula: str, n: int, settings: Sampling) -> str:
    """The normalised formula, if the model can do what is asked.

    Raises
    ------
    UserError
        For unknown elements, a broken substrate, no samples, an unknown solver, no steps, a share of symmetric samples
        that is none, or a window that excludes what the model has learned.
    """
    check_substrate(substrate)
    _solver(settings)
    if not 0.0 <= settings.symmetry <= 1.0:
        raise UserError(f"symmetry is {settings.symmetry:g}: give a share of the structures between 0 and 1")
    if settings.steps < 1:
        raise UserError(f"steps is {settings.steps}: ask for at least 1")
    if n < 1:
        raise UserError(f"n is {n}: ask for at least 1 structure")
    counts = parse_formula(formula)
    known = set(model.card.elements)
    for what, symbols in (("formula", set(counts)), ("substrate", set(substrate.get_chemical_symbols()))):
        if symbols - known:
            raise UserError(
                f"the {what} holds {', '.join(sorted(symbols - known))}, which the model does not know: "
                f"it was trained on {', '.join(model.card.elements)}; change the {what} or train a model"
            )
    top = float(substrate.positions[substrate.get_tags() == 1, 2].mean())
    low, high = (edge - top for edge in substrate.info["confinement"])
    quarter, three_quarters = model.card.heights[1:3]
    if low > quarter or high < three_quarters:
        raise UserError(
            f"window {low:.2f} to {high:.2f} Å above the top layer excludes the model's data, most of which lie "
            f"between {quarter:.2f} and {three_quarters:.2f} Å: build the substrate with a window such as 1.0 5.0"
        )
    return write_formula(counts)


def _solver(settings: Sampling) -> Solver:
    if settings.solver == "multistep":
        return Multistep(eta=settings.stochasticity)
    if settings.solver == "heun":
        return Heun(churn=min(settings.stochasticity, 0.41))
    if settings.solver == "euler":
        return EulerMaruyama()
    raise UserError(f'solver "{settings.solver}" is unknown: choose one of {", ".join(SOLVERS)}')


class _Block:
    """A block of structures under way: batch, domain, and the functions of overlayer positions that solvers need."""

    def __init__(self, model: Model, starts: list[Atoms], settings: Sampling) -> None:
        self.model, self.settings = model, settings
        self.batch: Batch = to_batch(starts, device=model.device)
        self.mobile = self.batch.mobile.nonzero()[:, 0]  # (M,)
        self.domain = Domain(self.batch.cell, self.batch.window, self.batch.batch[self.mobile])
        self.single = Domain(self.batch.cell[:1], self.batch.window[:1], self.domain.batch[:0])  # all have it in common
        self.kernel = PaperKernel() if model.card.kernel == "paper" else ExactKernel()
        self.fixed = torch.from_numpy(np.tile(fixed_mask(starts[0]), len(starts))).to(model.device)  # (N,)
        self.patience = _PATIENCE * len(self.mobile) / len(starts)
        self.network_calls = 0
        self.force_calls = 0

    @property
    def least_sigma(self) -> float:
        """The last noise level above zero, Å."""
        return max(self.settings.sigma_min, self.model.card.sigma_min)

    def at(self, positions: Tensor) -> Batch:
        """The batch with overlayer positions (M, 3)."""
        return self.batch.with_positions(self.batch.positions.index_copy(0, self.mobile, positions))

    def from_host(self, numbers: np.ndarray) -> Tensor:
        """Numbers of any shape in the batch's precision and on its device."""
        return torch.from_numpy(numbers).to(self.batch.positions)

    def score(self, conditions: Tensor) -> Score:
        """The model's score under conditions (K,) that hold for every structure."""
        rows = conditions.to(self.batch.positions).expand(self.batch.n_structures, -1)

        def score(positions: Tensor, sigma: Tensor) -> Tensor:
            self.network_calls += 1
            normalised = self.model.denoiser(self.at(positions), sigma, rows)
            levels, which = torch.unique(sigma, return_inverse=True)  # often one level for all
            return normalised * self.domain.per_atom(self.kernel.score_scale(levels, self.single)[which])

        return score

    def forces(self, positions: Tensor) -> Tensor:
        """Forces of the learned force field on the overlayer (M, 3), eV/Å."""
        self.force_calls += self.batch.n_structures
        return self.model.force_field.overlayer_forces(self.at(positions))

    def grid(self) -> Tensor:
        """Noise levels (K+1, B), none but the last below what the network has learned."""
        if self.settings.published_levels:
            levels = LinearBeta().grid(self.settings.steps)
            levels = torch.cat([levels[levels >= self.model.card.sigma_min], levels[-1:]]).to(self.batch.positions)
            return levels[:, None].expand(-1, self.batch.n_structures)
        top = sigma_max_for(self.batch.cell, self.batch.window)
        return sigma_grid(self.settings.steps, self.least_sigma, top, self.settings.rho)


def _guided_score(block: _Block, model: Model, settings: Sampling) -> Score:
    nothing = condition_row(None, None, model.card.n_conditions)
    if settings.energy is None and settings.fractions is None:
        return block.score(nothing)
    conditional = block.score(condition_row(settings.energy, settings.fractions, model.card.n_conditions))
    if settings.weight == 1.0:
        return conditional
    return classifier_free(conditional, block.score(nothing), settings.weight)


def _run_block(
    model: Model,
    substrate: Atoms,
    formula: str,
    numbers: list[int],
    seed: int,
    settings: Sampling,
    trajectory: list[list[np.ndarray]] | None,
) -> tuple[list[Atoms], int, int]:
    """Generate the samples of the given numbers together."""
    symbols = [s for s, n in parse_formula(formula).items() for _ in range(n)]
    start = substrate + Atoms(symbols, np.zeros((len(symbols), 3)), tags=0)
    start.info = dict(substrate.info)
    block = _Block(model, [start] * len(numbers), settings)
    streams = [sample_seed(seed, formula, k) for k in numbers]
    shape = (len(symbols), 3)
    orbits = _draw_orbits(substrate, list(parse_formula(formula).values()), streams, settings.symmetry)

    def draw(kind: str, shape: tuple[int, ...] = shape) -> np.ndarray:
        return np.concatenate([getattr(stream, kind)(size=shape) for stream in streams])

    def normal() -> Tensor:
        return block.from_host(orbits.vectors(draw("standard_normal")))

    guidance = None
    if settings.guidance > 0.0:
        guidance = ForceGuidance(block.forces, settings.guidance, sigma_gate=settings.guidance_gate)
    frames: list[np.ndarray] = []
    denoise = partial(
        sample,
        _guided_score(block, model, settings),
        solver=_solver(settings),
        normal=normal,
        domain=block.domain,
        guidance=guidance,
        corrector=Langevin(settings.corrector) if settings.corrector else None,
    )
    anywhere = uniform(block.domain, block.from_host(draw("random")))
    positions = denoise(
        block.from_host(orbits.place(anywhere.double().cpu().numpy())),
        block.grid(),
        callback=None if trajectory is None else lambda _, x: frames.append(x.double().cpu().numpy().copy()),
    )
    if trajectory is not None:
        by_sample = np.stack(frames, axis=1).reshape(len(numbers), len(symbols), len(frames), 3)
        trajectory.extend([list(s.transpose(1, 0, 2)) for s in by_sample])
    if settings.relax_steps:
        positions, energies = _settle(block, positions, settings.relax_steps)
    low, high = _REFINE_LEVELS
    for number in range(settings.refine if settings.relax_steps else 0):
        if 2 * number >= settings.refine:
            orbits = no_symmetry(len(positions))
        level = low * (high / low) ** block.from_host(draw("random", (1,)))  # (B,)
        noisy = block.kernel.perturb(positions, level, normal(), block.domain)
        levels = sigma_grid(settings.refine_steps, block.least_sigma, level, settings.rho)
        trial, trial_energies = _settle(block, denoise(noisy, levels), settings.relax_steps, energies)
        lower = trial_energies < energies  # (B,); false for NaN
        positions = torch.where(block.domain.per_atom(lower)[:, None], trial, positions)
        energies = torch.where(lower, trial_energies, energies)
    return _structures(block, start, positions, len(substrate)), block.network_calls, block.force_calls


def _draw_orbits(substrate: Atoms, counts: list[int], streams: list[np.random.Generator], share: float) -> Orbits:
    """Orbits of the samples' atoms, a ``share`` of the samples with a symmetry; without a share nothing is drawn."""
    groups = symmetry_groups(substrate) if share else {}
    return joined(
        [draw_orbits(counts, groups if share and stream.random() < share else {}, stream) for stream in streams]
    )


def _relax(block: _Block, whole: Batch, steps: int, target: Tensor | None) -> tuple[Tensor, Tensor]:
    """Positions (N, 3) and energies (B,) relaxed in the learned force field.

    Every few steps, what is done goes no further, nor what will hardly come below its ``target`` (B,), eV.
    """
    part, fixed = whole, block.fixed
    atoms, members = (torch.arange(n, device=fixed.device) for n in (len(fixed), whole.n_structures))

    def energies_and_forces(positions: Tensor) -> tuple[Tensor, Tensor]:
        block.force_calls += part.n_structures
        result: tuple[Tensor, Tensor] = block.model.force_field(part.with_positions(positions))
        return result

    state = init(energies_and_forces, part.positions, part.batch, fixed, _FMAX)
    positions, energies = state.positions.clone(), state.energies.clone()
    for taken in range(1, steps + 1):
        state = step(energies_and_forces, state, part.batch, fixed, _FMAX)
        if taken % _STAGE and taken < steps:
            continue
        positions[atoms], energies[members] = state.positions, state.energies
        left = state.active
        if target is not None:
            left = left & (state.energies < target[members] + block.patience / taken)
        if not bool(left.any()):
            break
        if not bool(left.all()):
            state = state.subset(left, part.batch)
            part, mask = part.subset(left)
            fixed, atoms, members = fixed[mask], atoms[mask], members[left]
    return positions, energies


def _settle(block: _Block, positions: Tensor, steps: int, target: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Relax in the learned force field, all atoms that ``FixAtoms`` leaves free.

    Returns the overlayer (M, 3), to be put back on the bare substrate as in the training data and clipped at the walls,
    and the relaxed energies (B,) in eV. A structure that breaks stays as it was, its energy infinite.
    """
    whole = block.at(positions)
    moved, final = _relax(block, whole, steps, target)
    relaxed, window = moved[block.mobile], block.domain.per_atom(whole.window)
    z = torch.minimum(torch.maximum(relaxed[:, 2], window[:, 0]), window[:, 1])
    relaxed = torch.cat([relaxed[:, :2], z[:, None]], dim=1)
    unsound = (~torch.isfinite(relaxed).all(dim=1)).float()
    broken = unsound.new_zeros(whole.n_structures).index_add(0, block.domain.batch, unsound) > 0  # (B,)
    energies = torch.where(broken, torch.full_like(final, torch.inf), final)
    return torch.where(block.domain.per_atom(broken)[:, None], positions, relaxed), energies


def _structures(block: _Block, start: Atoms, positions: Tensor, n_substrate: int) -> list[Atoms]:
    """ASE structures with learned energies and forces, as they stand: overlayer (M, 3) on the bare substrate."""
    whole = block.at(positions)
    interaction, forces = block.model.force_field(whole)
    energies = block.model.force_field.total_energy(whole, interaction).cpu().tolist()
    n = whole.n_structures
    overlayers = positions.double().cpu().reshape(n, -1, 3).numpy()
    return [
        _structure(start, overlayer, energy, force, n_substrate)
        for overlayer, energy, force in zip(
            overlayers, energies, forces.double().cpu().reshape(n, -1, 3).numpy(), strict=True
        )
    ]


def _structure(start: Atoms, overlayer: np.ndarray, energy: float, forces: np.ndarray, n_substrate: int) -> Atoms:
    """The ASE structure: substrate to the last bit as given, overlayer wrapped in the plane and kept in the window."""
    atoms = start.copy()
    atoms.info = dict(start.info)
    low, high = start.info["confinement"]
    cell = start.cell.array[:2, :2]
    fractional = overlayer[:, :2] @ np.linalg.inv(cell)
    atoms.positions[n_substrate:, :2] = (fractional - np.floor(fractional)) @ cell
    atoms.positions[n_substrate:, 2] = np.clip(overlayer[:, 2], low, high)
    atoms.calc = SinglePointCalculator(atoms, energy=float(energy), forces=forces)
    atoms.calc.name = "model"
    return atoms


def block_size(device: torch.device, n_atoms: int) -> int:
    """How many structures of so many atoms to work on together: few fit a processor's cache, few leave a GPU idle."""
    return _BLOCK if device.type == "cpu" else max(1, _DEVICE_BLOCK_ATOMS // n_atoms)


def generate(
    model: Model,
    substrate: Atoms,
    *,
    formula: str,
    n: int,
    seed: int = 0,
    settings: Sampling | None = None,
    skip: int = 0,
    block: int | None = None,
    trajectory: list[list[np.ndarray]] | None = None,
    on_block: Callable[[list[Atoms]], None] = lambda structures: None,
) -> Generated:
    """Generate structures of a formula on a substrate.

    Parameters
    ----------
    model
        From :func:`adlayer.training.checkpoint.load_model`; on whose device the work is done.
    substrate
        Any cell size, with tags and ``info["confinement"]``; its atoms end where they began, bit for bit.
    formula
        Of the overlayer.
    n
        Number of structures.
    seed
        Random seed; sample k is the same whatever ``n``, ``skip``, ``block`` and device (the last two up to rounding).
    settings
        See :class:`Sampling`; the default preset if not given.
    skip
        Samples that exist already and are not made again.
    block
        Structures worked on together; by default :func:`block_size`.
    trajectory
        A list to which each sample's overlayer positions after every step are appended, (m, 3) arrays.
    on_block
        Called with the structures of each finished block.

    Returns
    -------
    Generated
        Structures with learned energies and ``info["row"]`` for the database.

    Raises
    ------
    UserError
        See :func:`check_request`.
    """
    settings = settings or Sampling()
    formula = check_request(model, substrate, formula, n, settings)
    if settings.fractions is None and settings.energy is not None:
        counts = parse_formula(formula)
        settings = replace(settings, fractions=tuple(composition_fractions(counts, model.card.elements)))
    if block is None:
        block = block_size(model.device, len(substrate) + sum(parse_formula(formula).values()))
    structures: list[Atoms] = []
    network_calls = force_calls = 0
    for first in range(skip, n, block):
        numbers = list(range(first, min(first + block, n)))
        made, calls, forces = _run_block(model, substrate, formula, numbers, seed, settings, trajectory)
        for number, atoms in zip(numbers, made, strict=True):
            atoms.info["row"] = {"stage": "generated", "overlayer": formula, "seed": seed, "sample": number}
        structures += made
        network_calls, force_calls = network_calls + calls * len(numbers), force_calls + forces
        on_block(made)
    return Generated(structures, network_calls, force_calls)
