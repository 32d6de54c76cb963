"""New structures: the reverse diffusion with a trained model on a given substrate.

The substrate is masked: the network sees its atoms, nothing moves them. Overlayer atoms start uniformly in the cell
times the window and end inside it. The relaxation in the learned force field lets the substrate answer, but its
outcome is the overlayer alone, on the bare substrate, as in the training data. Every sample has its own random stream,
keyed by seed, formula and number and drawn on the host; structures are worked on in blocks, on the CPU as large as fit
the processor's cache. Another block size, or another device, changes rounding alone.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat

import numpy as np
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from torch import Tensor

from adlayer.diffusion.block import Block
from adlayer.diffusion.guidance import ForceGuidance
from adlayer.diffusion.kernels import Domain, uniform
from adlayer.diffusion.sampling import Sampling, solver_of
from adlayer.diffusion.schedule import sigma_grid
from adlayer.diffusion.solvers import Langevin, sample
from adlayer.errors import UserError
from adlayer.network.model import Model, composition_fractions
from adlayer.structures.orbits import Orbits, draw_orbits, joined, no_symmetry, symmetry_groups
from adlayer.structures.placement import has_room, parse_formula, write_formula
from adlayer.structures.substrate import check_substrate

_REFINE_LEVELS = (0.4, 0.9)  # Å: below, a move falls back; above, few are accepted
_BLOCK = 12  # structures worked on together on the CPU at most; more leave little for other processes
_ATTEMPTS = 4  # at a sample, before it is given up
_CLOSEST = 0.7  # of the sum of covalent radii, that atoms are apart in any structure
_AHEAD = 16  # steps whose normal numbers are drawn at once
_BLOCK_ATOMS, _DEVICE_BLOCK_ATOMS = 600, 25_600  # their atoms, on the CPU and on an accelerator


@dataclass(frozen=True)
class Generated:
    """What :func:`generate` returns."""

    structures: list[Atoms]
    n_network_calls: int  # denoiser evaluations, one for each structure of a batch
    n_force_calls: int  # learned force-field calls for all structures, guidance and relaxation


def sample_seed(seed: int, formula: str, number: int, attempt: int = 0) -> np.random.Generator:
    """The random stream of one sample, at its first or a later attempt."""
    key = (zlib.crc32(formula.encode()), number, 1, *([attempt] if attempt else []))
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def check_request(model: Model, substrate: Atoms, formula: str, n: int, settings: Sampling) -> str:
    """The normalised formula, if the model can do what is asked.

    Raises
    ------
    UserError
        For unknown elements, a broken substrate, no samples, an unknown solver, no steps or starts, a share of
        symmetric samples that is none, or a window that excludes what the model has learned.
    """
    check_substrate(substrate)
    solver_of(settings)
    if not 0.0 <= settings.symmetry <= 1.0:
        raise UserError(f"symmetry is {settings.symmetry:g}: give a share of the structures between 0 and 1")
    for what in ("steps", "starts"):
        if getattr(settings, what) < 1:
            raise UserError(f"{what} is {getattr(settings, what)}: ask for at least 1")
    for what in ("energy", "weight", "guidance"):
        if not math.isfinite(getattr(settings, what) or 0.0):
            raise UserError(f"{what} is {getattr(settings, what):g}: give a number")
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
    if not has_room(substrate, counts, _CLOSEST):
        raise UserError(
            f"{formula} has more atoms than find room in a window of {high - low:.2f} Å: "
            "enlarge the cell, widen the window or ask for fewer atoms"
        )
    return write_formula(counts)


@dataclass
class _Found:
    """Of each structure of a block the lowest in learned energy that was found so far."""

    positions: Tensor  # (M, 3) Å
    energies: Tensor  # (B,) eV
    orbits: list[Orbits]  # its symmetry
    films: list[np.ndarray]  # the overlayer after each step of its sampling, (K, m, 3) Å, where they are filmed

    def take(self, other: _Found, domain: Domain) -> None:
        """Take over what is lower in another."""
        lower = other.energies < self.energies  # (B,); false for NaN
        self.positions = torch.where(domain.per_atom(lower)[:, None], other.positions, self.positions)
        self.energies = torch.where(lower, other.energies, self.energies)
        for k in lower.cpu().nonzero()[:, 0].tolist():
            self.orbits[k], self.films[k] = other.orbits[k], other.films[k]


class _Search:
    """The search for the structures of a block, see :class:`Sampling`.

    Without a relaxation nothing is known of energies, and there is nothing to do but one start.
    """

    def __init__(
        self, block: Block, substrate: Atoms, counts: list[int], streams: list[np.random.Generator], *, filmed: bool
    ) -> None:
        self.block, self.settings, self.counts, self.streams = block, block.settings, counts, streams
        self.filmed = filmed
        self.groups = symmetry_groups(substrate) if self.settings.symmetry else {}
        guidance = None
        if self.settings.guidance > 0.0:
            guidance = ForceGuidance(block.forces, self.settings.guidance, sigma_gate=self.settings.guidance_gate)
        self.solver = solver_of(self.settings)
        self._denoise = partial(
            sample,
            block.guided_score(),
            solver=self.solver,
            domain=block.domain,
            guidance=guidance,
            corrector=Langevin(self.settings.corrector) if self.settings.corrector else None,
        )

    def run(self) -> _Found:
        """The lowest of the starts, refined: first with the symmetry that it was drawn with, then free of it."""
        if not self.settings.relax_steps:
            return self._sampled()
        found = self._relaxed(self._sampled(), None)
        for _ in range(1, self.settings.starts):
            found.take(self._relaxed(self._sampled(), found.energies), self.block.domain)
        for number in range(self.settings.refine):
            symmetric = 2 * number < self.settings.refine
            self._refine(found, joined(found.orbits) if symmetric else no_symmetry(len(found.positions)))
        return found

    def _draw(self, kind: str, *shape: int) -> np.ndarray:
        return np.concatenate([getattr(stream, kind)(size=shape) for stream in self.streams])

    def _normal(self, orbits: Orbits) -> Tensor:
        return self.block.from_host(orbits.vectors(self._draw("standard_normal", sum(self.counts), 3)))

    def _normals(self, orbits: Orbits, n_steps: int) -> Callable[[], Tensor]:
        """The normal numbers of so many steps, each time it is called; streams are drawn from for a few at once."""
        n = self.solver.normals(n_steps)
        parts = repeat(1) if self.settings.corrector else (min(_AHEAD, n - first) for first in range(0, n, _AHEAD))

        def draw() -> Iterator[Tensor]:
            for k in parts:
                drawn = [stream.standard_normal((k, sum(self.counts), 3)) for stream in self.streams]
                numbers = np.stack(drawn, axis=1).reshape(k, -1, 3)
                yield from self.block.from_host(np.stack([orbits.vectors(x) for x in numbers]))

        return draw().__next__

    def _draw_orbits(self, stream: np.random.Generator) -> Orbits:
        symmetric = bool(self.groups) and stream.random() < self.settings.symmetry
        return draw_orbits(self.counts, self.groups if symmetric else {}, stream)

    def _sampled(self) -> _Found:
        """Every structure from noise, each with a symmetry of its own; of unknown energy."""
        block = self.block
        drawn = [self._draw_orbits(stream) for stream in self.streams]
        orbits = joined(drawn)
        anywhere = uniform(block.domain, block.from_host(self._draw("random", sum(self.counts), 3)))
        frames: list[np.ndarray] = []
        levels = block.grid()
        positions = self._denoise(
            block.from_host(orbits.place(anywhere.double().cpu().numpy())),
            levels,
            normal=self._normals(orbits, len(levels) - 1),
            callback=(lambda _, x: frames.append(x.double().cpu().numpy().copy())) if self.filmed else None,
        )
        film = np.array(frames).reshape(len(frames), len(drawn), sum(self.counts), 3)
        unknown = positions.new_full((len(drawn),), torch.inf)
        return _Found(positions, unknown, drawn, list(film.transpose(1, 0, 2, 3)))

    def _relaxed(self, trial: _Found, target: Tensor | None) -> _Found:
        """A trial in its minimum, or on the way to one that will hardly be below the target (B,), eV."""
        positions, energies = self.block.settle(trial.positions, target)
        return replace(trial, positions=positions, energies=energies)

    def _refine(self, found: _Found, orbits: Orbits) -> None:
        """Noise every structure and denoise it with the given symmetry, relax, and take what is lower."""
        low, high = _REFINE_LEVELS
        level = low * (high / low) ** self.block.from_host(self._draw("random", 1))  # (B,)
        noisy = self.block.kernel.perturb(found.positions, level, self._normal(orbits), self.block.domain)
        levels = sigma_grid(self.settings.refine_steps, self.block.least_sigma, level, self.settings.rho)
        trial = replace(found, positions=self._denoise(noisy, levels, normal=self._normals(orbits, len(levels) - 1)))
        found.take(self._relaxed(trial, found.energies), self.block.domain)


def _run_block(
    model: Model,
    substrate: Atoms,
    formula: str,
    numbers: list[int],
    seed: int,
    settings: Sampling,
    attempt: int,
    filmed: bool,
) -> tuple[dict[int, tuple[Atoms, list[np.ndarray]]], int, int]:
    """Generate the samples of the given numbers together: those that are sound, with their films, by number.

    A sample is lost if positions are no numbers or, where it is relaxed, all that was tried ended with atoms inside
    each other.
    """
    counts = parse_formula(formula)
    symbols = [s for s, n in counts.items() for _ in range(n)]
    start = substrate + Atoms(symbols, np.zeros((len(symbols), 3)), tags=0)
    start.info = dict(substrate.info)
    block = Block(model, [start] * len(numbers), settings)
    streams = [sample_seed(seed, formula, k, attempt) for k in numbers]
    found = _Search(block, substrate, list(counts.values()), streams, filmed=filmed).run()
    sound = torch.isfinite(found.positions).reshape(len(numbers), -1).all(dim=1)
    if settings.relax_steps:
        sound &= torch.isfinite(found.energies)
    structures = _structures(block, start, torch.nan_to_num(found.positions), len(substrate))
    made = {
        number: (atoms, list(film))
        for number, atoms, film, whole in zip(numbers, structures, found.films, sound.cpu().tolist(), strict=True)
        if whole
    }
    return made, block.network_calls, block.force_calls


def _structures(block: Block, start: Atoms, positions: Tensor, n_substrate: int) -> list[Atoms]:
    """ASE structures with learned energies and forces, as they stand: overlayer (M, 3) on the bare substrate."""
    whole = block.at(positions)
    interaction, forces = block.force_field(whole)
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
    if device.type == "cpu":
        return min(_BLOCK, max(1, _BLOCK_ATOMS // n_atoms))
    return max(1, _DEVICE_BLOCK_ATOMS // n_atoms)


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

    Returns
    -------
    Generated
        Structures with learned energies and ``info["row"]`` for the database.

    Raises
    ------
    UserError
        See :func:`check_request`; and if a sample ends with atoms inside each other again and again.
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
        found: dict[int, tuple[Atoms, list[np.ndarray]]] = {}
        for attempt in range(_ATTEMPTS):
            left = [number for number in numbers if number not in found]
            if not left:
                break
            made, calls, forces = _run_block(
                model, substrate, formula, left, seed, settings, attempt, trajectory is not None
            )
            found |= made
            network_calls, force_calls = network_calls + calls * len(left), force_calls + forces
        for number in numbers:
            if number not in found:
                raise UserError(
                    f"sample {number} of {formula} ended {_ATTEMPTS} times with atoms inside each other: "
                    "enlarge the cell, widen the window or ask for fewer atoms"
                )
            atoms, film = found[number]
            atoms.info["row"] = {"stage": "generated", "overlayer": formula, "seed": seed, "sample": number}
            structures.append(atoms)
            if trajectory is not None:
                trajectory.append(film)
    return Generated(structures, network_calls, force_calls)
