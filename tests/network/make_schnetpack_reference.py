"""Make ``schnetpack_painn.npz``: weights, input and output of SchNetPack's own PaiNN (2.1.1), double precision.

Run it in an environment of its own, ``pip install schnetpack==2.1.1 ase numpy``; the tests need only the file it makes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.neighborlist import neighbor_list
from schnetpack import properties
from schnetpack.nn import CosineCutoff, GaussianRBF
from schnetpack.representation.painn import PaiNN

FEATURES, INTERACTIONS, N_RADIAL, CUTOFF = 12, 3, 8, 4.5


def main() -> None:
    torch.manual_seed(1)
    radial = GaussianRBF(n_rbf=N_RADIAL, cutoff=CUTOFF)
    net = PaiNN(FEATURES, INTERACTIONS, radial, CosineCutoff(CUTOFF)).double()
    torch.set_default_dtype(torch.float64)  # its Gaussians can be made in single precision only
    radial.offsets = torch.linspace(0.0, CUTOFF, N_RADIAL)
    radial.widths = torch.full((N_RADIAL,), CUTOFF / (N_RADIAL - 1))
    for parameter in net.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, std=0.3)  # it starts biases at 0: a mistake in them would not show
    rng = np.random.default_rng(0)
    atoms = Atoms("Ag4O4", cell=[[5.2, 0, 0], [1.7, 4.6, 0], [0, 0, 30]], pbc=[True, True, False])
    atoms.positions[:] = rng.random((8, 3)) * [5.0, 4.5, 4.0] + [0, 0, 10.0]
    i, j, shift, vectors = neighbor_list("ijSD", atoms, CUTOFF)
    vectors = torch.from_numpy(vectors).requires_grad_()
    inputs = {
        properties.Z: torch.from_numpy(atoms.numbers).long(),
        properties.Rij: vectors,
        properties.idx_i: torch.from_numpy(i).long(),
        properties.idx_j: torch.from_numpy(j).long(),
    }
    out = net(inputs)
    scalar, vector = out["scalar_representation"], out["vector_representation"]
    (gradient,) = torch.autograd.grad(scalar.sin().sum() + vector.cos().sum(), vectors)
    np.savez_compressed(
        Path(__file__).with_name("schnetpack_painn.npz"),
        size=np.array([FEATURES, INTERACTIONS, N_RADIAL, CUTOFF]),
        numbers=atoms.numbers,
        positions=atoms.positions,
        cell=atoms.cell.array[:2, :2],
        receiver=i,
        sender=j,
        shift=shift,
        scalar=scalar.detach().numpy(),
        vector=vector.detach().numpy(),
        gradient=gradient.numpy(),
        embedded=net.embedding(inputs[properties.Z]).detach().numpy(),
        **{f"weight:{n}": p.detach().numpy() for n, p in net.named_parameters() if not n.startswith("embedding")},
    )


if __name__ == "__main__":
    main()
