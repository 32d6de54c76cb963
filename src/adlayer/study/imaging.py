"""Pictures of structures and their simulated scanning tunnelling images, as sheets in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms

from adlayer.analysis.references import reference_names
from adlayer.errors import UserError
from adlayer.structures.placement import overlayer_formula
from adlayer.structures.store import check_selection
from adlayer.study.stages import FilePath, load_reference, load_structures

if TYPE_CHECKING:
    from adlayer.analysis.stm import StmImage

MOST = 24
"""Structures that a sheet holds."""

Sources = FilePath | Atoms | Sequence[FilePath | Atoms]


def choose(n: int, index: str) -> list[int]:
    """Places among n structures that a text names: numbers and slices as in Python, parted by spaces.

    >>> choose(8, "0 -1 2:4")
    [0, 7, 2, 3]
    """
    places: list[int] = []
    for word in index.replace(",", " ").split():
        try:
            bounds = [int(part) if part else None for part in word.split(":")]
            found = list(range(n))[slice(*bounds)] if ":" in word else [range(n)[int(word)]]
        except (ValueError, TypeError, IndexError) as error:
            raise UserError(f'index "{word}" names none of the {n} structures: write "0 2 -1" or "0:6"') from error
        places += found
    return places


def parse_weights(text: str) -> dict[str, float]:
    """Weights of elements from a text.

    >>> parse_weights("Ag=1 O=-0.1")
    {'Ag': 1.0, 'O': -0.1}
    """
    weights = {}
    for word in text.replace(",", " ").split():
        element, equals, number = word.partition("=")
        try:
            weights[element] = float(number)
        except ValueError:
            equals = ""
        if not (element and equals):
            raise UserError(f'the weight "{word}" is not understood: write weights like "Ag=1 O=-0.1"')
    return weights


def parse_line(text: str) -> np.ndarray:
    """(2, 2) ends of a line from a text of four lengths in Å.

    >>> parse_line("0 0 11.8 0").tolist()
    [[0.0, 0.0], [11.8, 0.0]]
    """
    try:
        ends = np.array([float(word) for word in text.replace(",", " ").split()]).reshape(2, 2)
    except ValueError:
        ends = np.zeros((2, 2))
    if not (np.isfinite(ends).all() and np.linalg.norm(ends[1] - ends[0]) > 0):
        raise UserError(f'the profile "{text}" is not a line: give x and y of both ends in Å, such as "0 0 11.8 0"')
    return ends


def _each(sources: Sources) -> list[FilePath | Atoms]:
    """A list of sources, also of a single one."""
    return [sources] if isinstance(sources, str | Path | Atoms) else list(sources)  # type: ignore[arg-type]


def _named(source: FilePath | Atoms, select: str, index: str) -> list[tuple[str, Atoms]]:
    """Structures of one source with titles: its name, and each one's place where there are several."""
    if isinstance(source, Atoms):
        return [(overlayer_formula(source) or str(source.symbols), source)]
    if str(source) in reference_names():
        return [(str(source), load_reference(str(source)))]
    every = load_structures(source, select)
    places = choose(len(every), index) if index else list(range(len(every)))
    name = Path(str(source)).name.split(".")[0]
    if len(every) == 1:
        return [(name, every[place]) for place in places]
    return [(f"{name} {place}: {overlayer_formula(every[place])}".rstrip(": "), every[place]) for place in places]


def _chosen(sources: Sources, select: str, index: str) -> tuple[list[str], list[Atoms]]:
    """Titles and structures of all sources."""
    check_selection(select, _each(sources))
    found = [pair for source in _each(sources) for pair in _named(source, select, index)]
    _check_number(len(found))
    return [title for title, _ in found], [atoms for _, atoms in found]


def _check_number(n: int) -> None:
    if not n:
        raise UserError("there are no structures to draw: give at least one")
    if n > MOST:
        raise UserError(f"{n} structures do not fit on a sheet of {MOST}: choose some, such as --index 0:{MOST}")


def picture(sources: Sources, output: FilePath, *, select: str = "", index: str = "") -> list[Atoms]:
    """Draw structures from above and from the side.

    Parameters
    ----------
    sources
        Structures, files, databases or names of references.
    output
        Picture to write: .png, .pdf or .svg.
    select, index
        Which rows of a database, in ASE's syntax, and which of each file's structures: see :func:`choose`.

    Returns
    -------
    list of ase.Atoms
        Those drawn.
    """
    from adlayer.report.pictures import check_picture, picture_sheet, save_picture

    check_picture(output)
    titles, structures = _chosen(sources, select, index)
    save_picture(picture_sheet(structures, titles), output)
    return structures


def _is_density(source: FilePath | Atoms) -> bool:
    """Whether a source is a local density of states that ASE's STM wrote: a JSON list, where databases are objects."""
    if isinstance(source, Atoms) or Path(source).suffix != ".json" or not Path(source).is_file():
        return False
    with Path(source).open(encoding="utf-8") as file:
        return file.read(1) == "["


def stm(
    sources: Sources,
    output: FilePath,
    *,
    mode: str = "current",
    distance: float = 4.0,
    weights: Mapping[str, float] | str = "",
    work_function: float = 4.6,
    blur: float = 0.0,
    resolution: float = 0.1,
    cell_experiment: str = "",
    profile: str = "",
    plane: float | None = None,
    select: str = "",
    index: str = "",
) -> list[StmImage]:
    """Draw simulated scanning tunnelling images, each beside its structure.

    Parameters
    ----------
    sources
        Structures, files, databases, names of references, or files that the ``write`` of ASE's STM made: those are
        drawn from their density of states (after the others), all others by the geometric model.
    output
        Picture to write: .png, .pdf or .svg.
    mode, distance, work_function, resolution
        See :func:`adlayer.analysis.stm.stm_image`.
    weights
        Of elements, such as ``"Ag=1 O=-0.1"``; elements that a structure lacks are left out.
    blur
        Width of the tip, Å.
    cell_experiment
        A measured unit cell, a and b in Å and the angle in degrees, such as ``"11.8 11.8 60"``.
    profile
        Ends of a line in Å, such as ``"0 0 11.8 0"``.
    plane
        Height at which a density of states defines the set point, Å.
    select, index
        See :func:`picture`.

    Returns
    -------
    list of StmImage
        In the order drawn.
    """
    from adlayer.analysis.ldos import stm_from_calculator
    from adlayer.analysis.stm import stm_image
    from adlayer.report.pictures import check_picture, save_picture
    from adlayer.report.stm import experimental_cell, stm_figure

    check_picture(output)
    experiment = experimental_cell(cell_experiment) if cell_experiment else None
    line = parse_line(profile) if profile else None
    given = parse_weights(weights) if isinstance(weights, str) else dict(weights)
    densities = [source for source in _each(sources) if _is_density(source)]
    others = [source for source in _each(sources) if not _is_density(source)]
    titles, structures = _chosen(others, select, index) if others else ([], [])
    _check_number(len(densities) + len(structures))
    _check_weights(given, structures)
    images = [
        stm_image(
            atoms,
            mode,
            distance=distance,
            weights={e: w for e, w in given.items() if e in atoms.get_chemical_symbols()},
            work_function=work_function,
            blur_width=blur,
            resolution=resolution,
        )
        for atoms in structures
    ]
    images += [stm_from_calculator(str(d), mode, plane=plane, blur_width=blur) for d in densities]
    drawn = [*structures, *[None] * len(densities)]
    titles += [Path(str(d)).stem for d in densities]
    save_picture(stm_figure(images, drawn, titles, experiment=experiment, line=line), output)
    return images


def _check_weights(weights: Mapping[str, float], structures: Sequence[Atoms]) -> None:
    """Raise :class:`UserError` if a weight names an element that no structure holds."""
    there = {symbol for atoms in structures for symbol in atoms.get_chemical_symbols()}
    if stray := sorted(set(weights) - there):
        raise UserError(f'the weight of "{stray[0]}" names no element of the structures: leave it out')
