"""The structures of a page: duplicates joined, ranked by energy, and the columns of their table.

Energies are given above a zero level for each composition: the reference's energy if it has the same formula (and an
energy from the same calculator, which is the caller's to see to), else the lowest of all structures shown. The sets are
pooled, so that an entry says how often each of them found it; the first set is the one reported on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms

from adlayer.analysis.compare import Interval
from adlayer.analysis.records import coverage, potential_energy
from adlayer.structures.placement import overlayer_formula

Sets = Mapping[str, Sequence[Atoms]]
NONE = "–"
DESCRIBED = {
    "cell": "cell",
    "primitive_cell": "primitive cell",
    "motif": "motif",
    "plane_group": "plane group",
    "layer_group": "layer group",
    "point_group": "point group",
}
"""Keys of a structure's record that become columns of the table, with their headings."""


@dataclass(frozen=True)
class Entry:
    """One unique structure: its lowest copy, and how often each set found it. Energies in eV, ``None`` if unknown."""

    rank: int
    atoms: Atoms
    formula: str
    coverage: dict[str, float]
    energy: float | None
    above: float | None
    found: dict[str, int]
    matched: bool
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def row(self) -> dict[str, Any]:
        """Keys of the database row it comes from."""
        return dict(self.atoms.info.get("row", {}))

    @property
    def copies(self) -> int:
        """How often it was found in all."""
        return sum(self.found.values())

    @property
    def coverage_text(self) -> str:
        """Such as ``"0.75 Ag + 0.375 O"``, in ML."""
        return " + ".join(f"{theta:.3g} {element}" for element, theta in reversed(self.coverage.items()))

    @property
    def filename(self) -> str:
        """Name of its structure file."""
        return f"{self.rank:04d}-{self.formula}.extxyz"

    @property
    def picture_text(self) -> str:
        """What its picture shows, for those who cannot see it."""
        return f"Structure {self.rank}, {self.formula}, from above and from the side; {signed(self.above)} eV"


@dataclass(frozen=True)
class Column:
    """A column of the table: heading, and for each entry the text shown and the value sorted by (``None`` last)."""

    label: str
    texts: list[str]
    values: list[float | str | None]
    kind: str = ""  # "text" is set to the left, "match" shows a badge

    @property
    def numeric(self) -> bool:
        """Whether it sorts as numbers."""
        return self.kind == ""


def signed(value: float | None, digits: int = 3) -> str:
    """A number with its sign and a true minus; a dash for ``None``.

    >>> signed(-0.1234), signed(None)
    ('−0.123', '–')
    """
    if value is None:
        return NONE
    return f"{0.0 if abs(value) < 0.5 * 10**-digits else value:+.{digits}f}".replace("-", "−")


def subscripts(formula: str) -> str:
    """A formula as it is printed.

    >>> subscripts("Ag12O6")
    'Ag₁₂O₆'
    """
    return formula.translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def interval_text(interval: Interval | None, digits: int = 0) -> str:
    """An estimate with its 95 % interval.

    >>> interval_text(Interval(70.0, 61.0, 84.5))
    '70 (61–84)'
    """
    if interval is None:
        return NONE
    low, high = (f"{v:.{digits}f}".replace("-", "−") for v in (interval.low, interval.high))
    return f"{interval.value:.{digits}f}".replace("-", "−") + f" ({low}–{high})"


def zero_levels(structures: Iterable[Atoms], reference: Atoms | None) -> dict[str, float]:
    """Energy (eV) that counts as zero for each formula of the whole structure."""
    levels: dict[str, float] = {}
    for atoms in structures:
        if (energy := potential_energy(atoms)) is not None:
            formula = atoms.get_chemical_formula()
            levels[formula] = min(levels.get(formula, energy), energy)
    if reference is not None and (energy := potential_energy(reference)) is not None:
        levels[reference.get_chemical_formula()] = energy
    return levels


def above_zero(atoms: Atoms, levels: Mapping[str, float]) -> float | None:
    """Energy above the zero level, eV."""
    energy = potential_energy(atoms)
    return None if energy is None else energy - levels[atoms.get_chemical_formula()]


def rank(
    sets: Sets,
    duplicates: Sequence[Sequence[int]],
    levels: Mapping[str, float],
    *,
    matched: Iterable[int] = (),
    records: Sequence[Mapping[str, Any]] | None = None,
) -> list[Entry]:
    """Unique structures of all sets together, the lowest above zero first; of equals, those found more often.

    Compositions that the first set does not hold come after those that it holds.

    Parameters
    ----------
    sets
        Name and structures of each set.
    duplicates
        Groups of indices into the pooled structures, the lowest of each group first.
    levels
        Of :func:`zero_levels`.
    matched
        Indices of the structures that are the reference.
    records
        Properties of each pooled structure by name: see :data:`DESCRIBED`.
    """
    pooled = [atoms for structures in sets.values() for atoms in structures]
    names = [name for name, structures in sets.items() for _ in structures]
    hits = set(matched)
    heights = [above_zero(pooled[group[0]], levels) for group in duplicates]
    known = [np.inf if height is None else height for height in heights]
    own = {atoms.get_chemical_formula() for atoms in next(iter(sets.values()), [])}
    foreign = [pooled[group[0]].get_chemical_formula() not in own for group in duplicates]
    order = sorted(range(len(duplicates)), key=lambda g: (foreign[g], known[g], -len(duplicates[g])))
    return [
        Entry(
            rank=place,
            atoms=(atoms := pooled[duplicates[g][0]]),
            formula=overlayer_formula(atoms),
            coverage=coverage(atoms),
            energy=potential_energy(atoms),
            above=heights[g],
            found=dict(Counter(names[i] for i in sorted(duplicates[g]))),
            matched=not hits.isdisjoint(duplicates[g]),
            record=records[duplicates[g][0]] if records else {},
        )
        for place, g in enumerate(order, start=1)
    ]


def _text(value: object) -> str:
    if value is None:
        return NONE
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _numbers(label: str, values: list[Any], texts: list[str] | None = None) -> Column:
    return Column(label, texts or [_text(v) for v in values], values)


def _words(label: str, texts: Iterable[object], kind: str = "text") -> Column:
    words = [_text(t) for t in texts]
    return Column(label, words, [None if word == NONE else word for word in words], kind)


def _origins(entries: Sequence[Entry]) -> Column:
    """Which sets found each entry, and how often where more than one did."""
    texts = [", ".join(name if len(e.found) == 1 else f"{name} {k}×" for name, k in e.found.items()) for e in entries]
    return _words("origin", texts)


def columns(entries: Sequence[Entry], with_match: bool) -> list[Column]:
    """The table's columns; those in which nothing is known are left out."""
    rows = [entry.row for entry in entries]
    streams = [" / ".join(str(r[k]) for k in ("seed", "sample") if r.get(k) is not None) or None for r in rows]
    found = [
        _words("overlayer", (subscripts(e.formula) for e in entries)),
        _words("coverage (ML)", (e.coverage_text for e in entries)),
        _numbers("ΔE (eV)", [e.above for e in entries], [signed(e.above) for e in entries]),
        *([_words("match", (e.matched for e in entries), "match")] if with_match else []),
        _numbers("found", [e.copies for e in entries], [f"{e.copies}×" for e in entries]),
        _origins(entries),
        *(_words(label, (e.record.get(key) for e in entries)) for key, label in DESCRIBED.items()),
        _numbers("E (eV)", [e.energy for e in entries], [signed(e.energy) for e in entries]),
        _numbers("steps", [r.get("n_steps") for r in rows]),
        _numbers("force calls", [r.get("n_force_calls") for r in rows]),
        _words("converged", (r.get("converged") for r in rows)),
        _words("seed / sample", streams),
        _words("model", (str(m)[:8] if (m := r.get("model")) else None for r in rows)),
    ]
    return [column for column in found if any(v is not None for v in column.values)]
