"""The force field of a trained model as an ASE calculator: the backend ``model:PATH``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from adlayer.errors import UserError
from adlayer.network.graph import to_batch
from adlayer.network.inference import fast_force_field
from adlayer.training.checkpoint import load_model


class LearnedCalculator(Calculator):
    """Energies (eV) and forces (eV/Å) of a model's force field; periodic in the plane only."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012  (ASE reads it from the class)

    def __init__(self, path: str) -> None:
        super().__init__()
        self.model = load_model(path)
        self._force_field = fast_force_field(self.model.force_field)

    def calculate(
        self, atoms: Atoms | None = None, properties: Sequence[str] = ("energy",), system_changes: Any = all_changes
    ) -> None:
        """Energy with the composition baseline, and forces on all atoms."""
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        unknown = set(self.atoms.get_chemical_symbols()) - set(self.model.card.elements)
        if unknown:
            raise UserError(f"the model does not know {', '.join(sorted(unknown))}: use another calculator")
        if self.model.force_field.lift and not self.atoms.get_tags().any():
            raise UserError(
                "the structure has no tags: mark the overlayer 0 and the substrate's layers 1, 2, … from the top"
            )
        work = self.atoms.copy()
        work.info = {"confinement": [0.0, 1.0]}  # the force field knows no walls
        batch = to_batch([work])
        interaction, forces = self._force_field(batch)
        energy = self.model.force_field.total_energy(batch, interaction)
        self.results = {"energy": float(energy[0]), "forces": forces.double().numpy()}
