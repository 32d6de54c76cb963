"""The explorer of a page: structures in three dimensions, linked to a map of their energies and descriptors.

It is chemiscope's default visualiser (G. Fraux, R. K. Cersonsky & M. Ceriotti, J. Open Source Softw. 5, 2117 (2020)),
version 1.1.0, whose built JavaScript ships with this package (``vendor/``, BSD-3-Clause, notices beside it): so a page
needs nothing installed and no network, and users are spared the notebook packages that the Python package of
chemiscope depends on. Its sha256 is :data:`CHEMISCOPE_SHA256`; ``vendor/README.md`` says where it comes from.

A page opened from a file may not fetch data. The data set is therefore a script, ``data.js``, that assigns
``adlayerData``: ``looks`` (name, kind, colour and radius in Å of each kind of atom), ``structures`` (for each the
``looks`` of its atoms by index, their ``positions`` (n, 3) in 0.001 Å, flattened, its ``cell`` in Å, and how often it
is drawn along both vectors, ``repeat``), ``properties`` in chemiscope's format, ``map`` (the axes to begin with) and
``pictures`` (path by rank and label). The page turns a structure into chemiscope's format when it is shown. Neither may
such a page download files, so it makes them from ``files`` (name, and extended XYZ compressed by gzip in base64).
"""

from __future__ import annotations

import base64
import gzip
import json
import lzma
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import covalent_radii

from adlayer.analysis.descriptors import overlayer_heights, principal_components
from adlayer.analysis.motifs import fingerprints
from adlayer.report.entries import DESCRIBED, Entry
from adlayer.report.figures import structure_legend

CHEMISCOPE_SHA256 = "0e0ead7bcdb25bb32424f28f152b81ca98d22deba8f263de83ea1569b3377bc0"
_DRAWN_RADIUS = 0.92  # over the covalent radius, as in the figures
_ABOVE = 2.0  # Å of the drawn cell above the highest atom
_CATEGORIES = 50  # as many different words chemiscope takes
_WIDE = 16.0  # Å that cells are repeated to fill


def write_chemiscope(folder: Path) -> None:
    """Write ``chemiscope.min.js`` and the notices of what is in it into a folder."""
    vendor = resources.files("adlayer.report") / "vendor"
    (folder / "chemiscope.min.js").write_bytes(lzma.decompress((vendor / "chemiscope.min.js.xz").read_bytes()))
    (folder / "LICENSES.txt").write_bytes((vendor / "LICENSES.txt").read_bytes())


def _kinds(atoms: Atoms) -> list[tuple[str, str, str]]:
    """Name, kind and colour of each atom: the element in the overlayer, the layer in the substrate."""
    legend = structure_legend(atoms)
    overlayer = {label.split()[0]: colour for label, colour in legend if label.endswith("overlayer")}
    layers = [(label.removesuffix(" (top)"), colour) for label, colour in legend if label.startswith("layer")]
    return [
        (symbol, f"{symbol} overlayer", overlayer[symbol])
        if tag == 0
        else (symbol, f"{symbol} {layers[min(tag, len(layers)) - 1][0]}", layers[min(tag, len(layers)) - 1][1])
        for symbol, tag in zip(atoms.get_chemical_symbols(), atoms.get_tags().tolist(), strict=True)
    ]


def _compact(atoms: Atoms, looks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A structure as ``data.js`` holds it; kinds of atoms not met before are added to ``looks``."""
    wrapped = atoms.copy()
    wrapped.wrap(pbc=(True, True, False), eps=0.2 / np.linalg.norm(atoms.cell.array[:2], axis=1).max())
    positions = wrapped.positions - [0.0, 0.0, wrapped.positions[:, 2].min()]
    for (name, kind, colour), z in zip(kinds := _kinds(atoms), atoms.numbers, strict=True):
        if kind not in looks:
            radius = round(_DRAWN_RADIUS * float(covalent_radii[z]), 3)
            looks[kind] = {"index": len(looks), "name": name, "kind": kind, "colour": colour, "radius": radius}
    cell = np.array([*atoms.cell.array[:2], [0.0, 0.0, positions[:, 2].max() + _ABOVE]])
    return {
        "looks": [looks[kind]["index"] for _, kind, _ in kinds],
        "positions": np.rint(1000 * positions).astype(int).ravel().tolist(),
        "cell": cell.round(4).ravel().tolist(),
        "repeat": np.ceil(_WIDE / np.linalg.norm(cell[:2], axis=1)).astype(int).tolist(),
    }


def _property(values: Sequence[Any], units: str = "", description: str = "") -> dict[str, Any]:
    shown = [v if isinstance(v, str) else None if v is None else round(float(v), 6) for v in values]
    labels = {key: text for key, text in {"units": units, "description": description}.items() if text}
    return {"target": "structure", "values": shown, **labels}


def properties(entries: Sequence[Entry]) -> dict[str, dict[str, Any]]:
    """What the map can show of each entry, in chemiscope's format; unknown numbers are ``None``."""
    heights = [overlayer_heights(entry.atoms) for entry in entries]
    components = principal_components(fingerprints([entry.atoms for entry in entries])).T.tolist()
    found = {
        "ΔE": _property([e.above for e in entries], "eV", "energy above the zero of its composition"),
        "mean height": _property([h.mean() if len(h) else None for h in heights], "Å", "of the overlayer"),
        "height spread": _property([h.std() if len(h) else None for h in heights], "Å", "of the overlayer"),
        "PC 1": _property(components[0], "", "first principal component of the surroundings of its atoms"),
        "PC 2": _property(components[1], "", "second principal component of the surroundings of its atoms"),
    }
    if any(excess := [e.record.get("energy_per_area") for e in entries]):
        found["ΔE per area"] = _property([None if v is None else 1e3 * v for v in excess], "meV/Å²")
    for element in sorted({element for entry in entries for element in entry.coverage}):
        found[f"{element} coverage"] = _property([e.coverage.get(element, 0.0) for e in entries], "ML")
    found["times found"] = _property([entry.copies for entry in entries])
    found["rank"] = _property([entry.rank for entry in entries])
    words = {"origin": [" + ".join(e.found) for e in entries], "overlayer": [e.formula for e in entries]}
    words |= {label: [str(e.record.get(key) or "unknown") for e in entries] for key, label in DESCRIBED.items()}
    found |= {name: _property(values) for name, values in words.items() if 1 < len(set(values)) <= _CATEGORIES}
    return {name: p for name, p in found.items() if any(v is not None for v in p["values"])}


def map_axes(known: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Axes to begin with: energy against a coverage if coverages differ, else against the mean height."""
    varying = [name for name in known if name.endswith(" coverage") and len(set(known[name]["values"])) > 1]
    x = (["O coverage"] if "O coverage" in varying else varying or ["mean height"])[0]
    y, colour = ("ΔE", "PC 1") if "ΔE" in known else ("PC 1", "PC 2")
    return {
        "x": {"property": x},
        "y": {"property": y},
        "color": {"property": colour, "palette": "viridis"},
        "symbol": "origin" if "origin" in known else "",
        "size": {"factor": 35 if len(known["rank"]["values"]) < 1000 else 20},
    }


def _packed(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def write_data(
    path: Path,
    title: str,
    entries: Sequence[Entry],
    pictures: Mapping[int, Mapping[str, str]],
    files: Mapping[str, str],
) -> None:
    """Write ``data.js``.

    Parameters
    ----------
    path
        Of the file.
    title
        Name of the data set.
    entries
        Unique structures in the order of their ranks.
    pictures
        Label and path, relative to the page, of the pictures of each pictured rank.
    files
        Name and content of each entry's structure file.
    """
    looks: dict[str, dict[str, Any]] = {}
    structures = [_compact(entry.atoms, looks) for entry in entries]
    known = properties(entries)
    data = {
        "title": title,
        "looks": list(looks.values()),
        "structures": structures,
        "properties": known,
        "map": map_axes(known),
        "pictures": pictures,
        "files": [[name, _packed(text)] for name, text in files.items()],
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    path.write_text(f"const adlayerData = JSON.parse({json.dumps(text)});\n", encoding="utf-8")
