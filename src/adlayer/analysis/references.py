"""The reference structures that come with the package; their sources stand in ``data/references/README.md``."""

from __future__ import annotations

from importlib import resources
from io import StringIO

import ase.io
from ase import Atoms

from adlayer.errors import UserError

_FOLDER = resources.files("adlayer") / "data" / "references"
_SUFFIX = ".extxyz"


def reference_names() -> list[str]:
    """Names of all reference structures, sorted.

    >>> "p4x4-O_Ag111-Ag6" in reference_names()
    True
    """
    return sorted(f.name.removesuffix(_SUFFIX) for f in _FOLDER.iterdir() if f.name.endswith(_SUFFIX))


def reference(name: str) -> Atoms:
    """The reference structure of that name, with tags, fixed atoms and ``info``.

    ``info`` holds ``confinement`` (Å) and, where known, ``reference_energy`` (eV) and its source.

    Raises
    ------
    UserError
        If there is none of that name.
    """
    if name not in reference_names():
        raise UserError(f'there is no reference "{name}": choose one of {", ".join(reference_names())}')
    atoms = ase.io.read(StringIO((_FOLDER / f"{name}{_SUFFIX}").read_text()), index=-1, format="extxyz")
    assert isinstance(atoms, Atoms)
    atoms.info["confinement"] = [float(z) for z in atoms.info["confinement"]]
    return atoms
