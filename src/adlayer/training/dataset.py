"""Training data from the rows of a search.

**Examples** teach the denoiser: overlayer atoms as relaxed, *on the bare substrate* as the search placed it. In
generation the network meets the bare substrate, so it must not learn from the substrate's answer to the overlayer;
structures whose substrate atoms moved far are left out.

**Frames** teach the force field: points of the relaxation paths, with total energies and the forces on all atoms.

Rows are selected by energy above the lowest of the same composition (same overlayer, same substrate atoms) and by
composition.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from adlayer.errors import UserError
from adlayer.structures.placement import parse_formula

Row = Any  # ase.db.row.AtomsRow, which sets its columns at run time


@dataclass(frozen=True)
class Example:
    """One structure for the denoiser. n atoms."""

    numbers: np.ndarray  # (n,)
    positions: np.ndarray  # (n, 3) Å, overlayer as relaxed, substrate bare
    tags: np.ndarray  # (n,) 0 for the overlayer, 1, 2, … for the substrate's layers from the top
    cell: np.ndarray  # (2, 2) Å
    top: float  # Å, height of the top layer
    energy_above: float  # eV per overlayer atom above the lowest of the same composition

    def repeat(self, n: int, m: int) -> Example:
        """The structure repeated n×m in the plane; energies per atom stay."""
        if n == m == 1:
            return self
        steps = np.stack(np.meshgrid(np.arange(n), np.arange(m), indexing="ij"), -1).reshape(-1, 2) @ self.cell
        offsets = np.concatenate([steps, np.zeros((len(steps), 1))], axis=1)
        positions = (self.positions[None] + offsets[:, None]).reshape(-1, 3)
        return replace(
            self,
            numbers=np.tile(self.numbers, n * m),
            positions=positions,
            tags=np.tile(self.tags, n * m),
            cell=self.cell * np.array([[n], [m]]),
        )

    @cached_property
    def mobile(self) -> np.ndarray:
        """(n,) bool: overlayer atoms."""
        mask: np.ndarray = self.tags == 0
        return mask

    @cached_property
    def n_mobile(self) -> int:
        """Overlayer atoms."""
        return int(self.mobile.sum())

    @property
    def heights(self) -> np.ndarray:
        """Heights of the overlayer atoms above the top layer, Å."""
        return self.positions[self.mobile, 2] - self.top

    @cached_property
    def reach(self) -> tuple[float, float]:
        """The lowest and the highest of them."""
        return float(self.heights.min()), float(self.heights.max())

    @cached_property
    def counts(self) -> dict[str, int]:
        """Overlayer atoms of each element."""
        return Counter(chemical_symbols[z] for z in self.numbers[self.mobile])


@dataclass(frozen=True)
class Frame:
    """One configuration for the force field."""

    numbers: np.ndarray  # (n,)
    positions: np.ndarray  # (n, 3) Å
    tags: np.ndarray  # (n,) 0 for the overlayer, 1, 2, … for the substrate's layers from the top
    cell: np.ndarray  # (2, 2) Å
    energy: float  # eV, total
    forces: np.ndarray  # (n, 3) eV/Å


@dataclass(frozen=True)
class Selection:
    """Which rows to learn from.

    ``energy_window``: eV per structure above the lowest of the same composition; ``fractions``: for an element, the
    allowed range of its share among the overlayer atoms; ``substrate_shift``: largest displacement of a substrate
    atom, Å; ``force_limit``: frames with larger forces (eV/Å) are left out.
    """

    energy_window: float = 2.5
    fractions: tuple[tuple[str, float, float], ...] = ()
    substrate_shift: float = 1.0
    force_limit: float = 30.0
    limit: int | None = None


def parse_selection(text: str) -> Selection:
    """A selection from text such as ``"dE<0.5, 0.2<O<0.4, shift<1"``.

    >>> parse_selection("dE<0.5, 0.2<O<0.4").energy_window
    0.5
    """
    selection = Selection()
    for part in filter(None, (p.strip() for p in text.split(","))):
        pieces = [p.strip() for p in part.split("<")]
        try:
            if len(pieces) == 2 and pieces[0] == "dE":
                selection = replace(selection, energy_window=_number(pieces[1]))
            elif len(pieces) == 2 and pieces[0] == "shift":
                selection = replace(selection, substrate_shift=_number(pieces[1]))
            elif len(pieces) == 2 and pieces[0] == "n":
                selection = replace(selection, limit=int(pieces[1]) - 1)
            elif len(pieces) == 3 and pieces[1] in chemical_symbols:
                bounds = (pieces[1], _number(pieces[0]), _number(pieces[2]))
                selection = replace(selection, fractions=(*selection.fractions, bounds))
            elif len(pieces) == 2 and pieces[0] in chemical_symbols:
                selection = replace(selection, fractions=(*selection.fractions, (pieces[0], -1.0, _number(pieces[1]))))
            else:
                raise ValueError
        except ValueError as error:
            raise UserError(
                f'selection "{part}" is not understood: write "dE<0.5" (eV), "0.2<O<0.4" (fraction), "shift<1" (Å) '
                'or "n<100"'
            ) from error
    return selection


def _number(text: str) -> float:
    """Raises ``ValueError`` for what compares with nothing, too."""
    value = float(text)
    if math.isnan(value):
        raise ValueError
    return value


@dataclass(frozen=True)
class Dataset:
    """Selected data, training and validation apart. A row's example and frames are on the same side."""

    train: list[Example]
    validation: list[Example]
    frames: list[Frame]
    validation_frames: list[Frame]
    calculator: dict[str, str]
    compositions: dict[str, int]
    data_hash: str

    @property
    def elements(self) -> tuple[str, ...]:
        """Chemical symbols in the data, heaviest first."""
        numbers = {int(z) for e in (*self.train, *self.validation) for z in np.unique(e.numbers)}
        return tuple(chemical_symbols[z] for z in sorted(numbers, reverse=True))


def _path(row: Row) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions, energies, forces of the row's path; of its last point if there is no path."""
    data = row.data
    if "path_positions" in data:
        return data["path_positions"], data["path_energies"], data["path_forces"]
    atoms = row.toatoms()
    return row.positions[None], np.array([row.energy]), atoms.get_forces(apply_constraint=False)[None]


def _allowed(row: Row, selection: Selection) -> bool:
    counts = parse_formula(row.overlayer)
    total = sum(counts.values())
    return all(low < counts.get(s, 0) / total < high for s, low, high in selection.fractions)


def _one_backend(rows: Sequence[Row]) -> dict[str, str]:
    records = {(r.get("calculator", "unknown"), *sorted(r.get("calculator_parameters", {}).items())) for r in rows}
    if len(records) > 1:
        names = ", ".join(sorted(str(r[0]) for r in records))
        raise UserError(
            f"the database mixes energies of different calculators or settings ({names}): relax all of it with one of "
            "them into another database"
        )
    name, *settings = records.pop()
    return {"name": str(name), **{k: str(v) for k, v in settings}}


def build_dataset(rows: Iterable[Row], selection: Selection, *, validation: float = 0.05, seed: int = 0) -> Dataset:
    """Examples and frames from converged rows.

    Parameters
    ----------
    rows
        Of an ASE database, with ``overlayer`` and paths, in an order that does not depend on the run.
    selection
        What to keep.
    validation
        Fraction of the structures held out.
    seed
        Of the split.

    Raises
    ------
    UserError
        If nothing is left, or energies of different backends are mixed.
    """
    rows = [row for row in rows if row.get("converged") and row.get("overlayer") and row.get("energy") is not None]
    if not rows:
        raise UserError("the database holds no converged structures: run adlayer search first")
    calculator = _one_backend(rows)
    lowest: dict[tuple[str, int], float] = {}
    for row in rows:
        key = (row.overlayer, row.natoms)
        lowest[key] = min(row.energy, lowest.get(key, np.inf))
    entries: list[tuple[Example | None, list[Frame]]] = []
    n_examples = 0
    digest = hashlib.sha256()
    compositions: dict[str, int] = {}
    if selection.limit is not None:  # any n of them, and those of a smaller n among them
        rows = [rows[k] for k in np.random.default_rng([seed, 1]).permutation(len(rows))]
    for row in rows:
        if selection.limit is not None and n_examples >= selection.limit:
            break
        above = row.energy - lowest[row.overlayer, row.natoms]
        if above > selection.energy_window or not _allowed(row, selection):
            continue
        positions, energies, forces = _path(row)
        mobile = row.tags == 0
        shift = np.linalg.norm(positions[-1] - positions[0], axis=1)[~mobile]
        cell = np.asarray(row.cell)[:2, :2]
        usable = np.abs(forces).max(axis=(1, 2)) < selection.force_limit
        row_frames = [
            Frame(row.numbers, x.astype(float), row.tags, cell, float(e), f)
            for x, e, f, good in zip(positions, energies, forces, usable, strict=True)
            if good
        ]
        example = None
        if shift.max(initial=0.0) <= selection.substrate_shift:
            bare = np.where(mobile[:, None], positions[-1], positions[0]).astype(float)
            top = float(positions[0][row.tags == 1, 2].mean())
            example = Example(row.numbers, bare, row.tags, cell, top, above / int(mobile.sum()))
            compositions[row.overlayer] = compositions.get(row.overlayer, 0) + 1
            n_examples += 1
        entries.append((example, row_frames))
        for array in (row.numbers, positions[-1].round(4), cell.round(6)):
            digest.update(np.ascontiguousarray(array).tobytes())
    if n_examples < 2:
        raise UserError(f"only {n_examples} structures of the database pass the selection: widen it or search more")
    order = np.random.default_rng(seed).permutation(len(entries))
    n_held = max(1, round(validation * len(entries)))
    held = [entries[k] for k in sorted(order[:n_held])]
    kept = [entries[k] for k in sorted(order[n_held:])]
    return Dataset(
        train=[example for example, _ in kept if example is not None],
        validation=[example for example, _ in held if example is not None],
        frames=[frame for _, some in kept for frame in some],
        validation_frames=[frame for _, some in held for frame in some],
        calculator=calculator,
        compositions=dict(sorted(compositions.items())),
        data_hash=digest.hexdigest()[:16],
    )


def composition_baseline(frames: Sequence[Frame], numbers: Sequence[int]) -> np.ndarray:
    """Energy of each element (eV) that fits the frames' total energies best, least squares, minimum norm."""
    counts = np.array([[np.count_nonzero(f.numbers == z) for z in numbers] for f in frames], dtype=float)
    energies = np.array([f.energy for f in frames])
    solution: np.ndarray = np.linalg.lstsq(counts, energies, rcond=None)[0]
    return solution
