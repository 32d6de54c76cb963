"""Symmetries of both networks, to 1e-5 of the largest component in single precision.

Each operation is applied to the structure; the network's vectors must turn with it. To show that the comparison sees a
broken symmetry, the same comparison is made with an error planted in the network's answer, one that breaks that
symmetry (and, where it can, no other).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from ase import Atoms
from torch import Tensor

from adlayer.network.graph import Batch, to_batch
from adlayer.network.heads import Denoiser, ForceField

Answer = tuple[Tensor, Tensor]  # energy per structure (B,) or nothing (B, 0), vectors of all atoms (N, 3)
Network = Callable[[Batch], Answer]
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Operation:
    """A change of a structure under which vectors turn by ``turn`` and atom i is what atom ``origin[i]`` was."""

    apply: Callable[[Atoms], Atoms]
    turn: np.ndarray
    origin: Callable[[int], np.ndarray] = np.arange
    times: int = 1
    planted: Callable[[Batch, Tensor], Tensor] = lambda batch, v: v


def _turned(matrix: np.ndarray) -> Callable[[Atoms], Atoms]:
    def apply(atoms: Atoms) -> Atoms:
        turned = atoms.copy()
        turned.set_cell(atoms.cell.array @ matrix.T)
        turned.positions = atoms.positions @ matrix.T
        return turned

    return apply


def _rotation(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def _reflection(degrees: float) -> np.ndarray:
    return _rotation(degrees) @ np.diag([1.0, -1.0, 1.0]) @ _rotation(-degrees)


def _translated(atoms: Atoms) -> Atoms:
    moved = atoms.copy()
    moved.positions += [3.17, -8.41, 0.0]
    moved.wrap()
    return moved


SWAP = [1, 0, 3, 2, 5, 4, 8, 6, 7]  # like atoms of Ag4 + Ag2O3 change places, layers and overlayer apart


def _permuted(atoms: Atoms) -> Atoms:
    permuted = atoms[SWAP]
    permuted.info = dict(atoms.info)
    return permuted


def _other_basis(atoms: Atoms) -> Atoms:
    other = atoms.copy()
    other.set_cell(np.array([[2, 1, 0], [1, 1, 0], [0, 0, 1]]) @ atoms.cell.array)
    other.wrap()
    return other


def _doubled(atoms: Atoms) -> Atoms:
    double = atoms.repeat((2, 1, 1))
    double.info = dict(atoms.info)
    return double


def _fixed_axis(batch: Batch, v: Tensor) -> Tensor:
    return v + 0.01 * torch.tensor([1.0, 0.0, 0.0])


def _handed(batch: Batch, v: Tensor) -> Tensor:
    """A quarter turn about z: commutes with every rotation, with no reflection."""
    return v + 0.01 * torch.stack([-v[:, 1], v[:, 0], torch.zeros(len(v))], dim=-1)


def _absolute(batch: Batch, v: Tensor) -> Tensor:
    return v + 0.01 * batch.positions


def _by_index(batch: Batch, v: Tensor) -> Tensor:
    return v * (1.0 + 0.01 * torch.arange(len(v)))[:, None]


def _by_cell(batch: Batch, v: Tensor) -> Tensor:
    return v * (1.0 + 0.01 * batch.cell[:, 0].norm())


def _by_count(batch: Batch, v: Tensor) -> Tensor:
    return v * (1.0 + 0.01 * len(v))


ONE = np.eye(3)
OPERATIONS = {
    "rotation by 37 degrees": Operation(_turned(_rotation(37.0)), _rotation(37.0), planted=_fixed_axis),
    "rotation by a half turn": Operation(_turned(_rotation(180.0)), _rotation(180.0), planted=_fixed_axis),
    "reflection": Operation(_turned(_reflection(0.0)), _reflection(0.0), planted=_handed),
    "oblique reflection": Operation(_turned(_reflection(23.0)), _reflection(23.0), planted=_handed),
    "translation with wrapping": Operation(_translated, ONE, planted=_absolute),
    "permutation": Operation(_permuted, ONE, origin=lambda n: np.array(SWAP), planted=_by_index),
    "another basis": Operation(_other_basis, ONE, planted=_by_cell),
    "repetition": Operation(_doubled, ONE, origin=lambda n: np.tile(np.arange(n), 2), times=2, planted=_by_count),
}


def _score(batch: Batch, denoiser: Denoiser) -> Answer:
    """The denoiser's answer, zeros on the substrate."""
    sigma = torch.full((batch.n_structures,), 0.4)
    with torch.no_grad():
        found = denoiser(batch, sigma, torch.tensor([[0.1, float("nan")]]).expand(batch.n_structures, -1))
    return torch.zeros(batch.n_structures, 0), torch.zeros_like(batch.positions).masked_scatter(
        batch.mobile[:, None], found
    )


def _networks() -> dict[str, Network]:
    torch.manual_seed(3)
    size = {"features": 16, "interactions": 2, "n_radial": 8, "cutoff": 5.0}
    denoiser = Denoiser([47, 8], n_conditions=2, **size)
    energy, direct = ForceField([47, 8], **size).eval(), ForceField([47, 8], direct=True, **size).eval()
    return {"denoiser": lambda batch: _score(batch, denoiser), "force field": energy, "direct force field": direct}


NETWORKS = _networks()


def _deviation(network: Network, atoms: Atoms, operation: Operation) -> float:
    """Largest deviation from the symmetry, relative to the largest component."""
    energy, vectors = network(to_batch([atoms]))
    energy_after, vectors_after = network(to_batch([operation.apply(atoms)]))
    origin = torch.from_numpy(operation.origin(len(atoms)))
    expected = vectors[origin] @ torch.from_numpy(operation.turn.T).float()
    wrong = float((vectors_after - expected).abs().max() / expected.abs().max())
    if energy.numel():
        wrong = max(wrong, float((energy_after - operation.times * energy).abs() / energy.abs()))
    return wrong


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_symmetric(network: Network, operation: Operation, slab: Callable[..., Atoms]) -> None:
    atoms = slab(5)

    def broken(batch: Batch) -> Answer:
        energy, vectors = network(batch)
        return energy, operation.planted(batch, vectors)

    assert _deviation(network, atoms, operation) < TOLERANCE
    assert _deviation(broken, atoms, operation) > 100 * TOLERANCE


Z_MIRROR = np.diag([1.0, 1.0, -1.0])


def _upside_down(atoms: Atoms) -> Atoms:
    turned = _turned(Z_MIRROR)(atoms)
    turned.set_cell(atoms.cell)
    low, high = atoms.info["confinement"]
    turned.info["confinement"] = [-high, -low]
    return turned


def test_up_and_down_differ_for_the_denoiser_alone(slab: Callable[..., Atoms]) -> None:
    """Even with substrate and walls turned over: its vectors start from the surface normal. The energy has no up."""
    mirror = Operation(_upside_down, Z_MIRROR)
    assert _deviation(NETWORKS["denoiser"], slab(5), mirror) > 0.05
    assert _deviation(NETWORKS["force field"], slab(5), mirror) < TOLERANCE


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_an_overlayer_turned_over_on_its_substrate_differs(network: Network, slab: Callable[..., Atoms]) -> None:
    atoms = slab(5)

    def overlayer_over(atoms: Atoms) -> Atoms:
        turned = atoms.copy()
        mobile = atoms.get_tags() == 0
        turned.positions[mobile, 2] = sum(atoms.info["confinement"]) - atoms.positions[mobile, 2]
        return turned

    assert _deviation(network, atoms, Operation(overlayer_over, Z_MIRROR)) > 0.01


def test_the_denoiser_knows_its_walls(slab: Callable[..., Atoms]) -> None:
    atoms = slab(5)

    def higher_wall(atoms: Atoms) -> Atoms:
        other = atoms.copy()
        other.info["confinement"] = [8.2, 13.0]
        return other

    assert _deviation(NETWORKS["denoiser"], atoms, Operation(higher_wall, ONE)) > 1e-3
    assert _deviation(NETWORKS["force field"], atoms, Operation(higher_wall, ONE)) == 0.0


def test_moving_substrate_walls_and_overlayer_up_changes_nothing(slab: Callable[..., Atoms]) -> None:
    def lifted(atoms: Atoms) -> Atoms:
        other = atoms.copy()
        other.positions[:, 2] += 2.5
        other.info["confinement"] = [z + 2.5 for z in atoms.info["confinement"]]
        return other

    for network in NETWORKS.values():
        assert _deviation(network, slab(5), Operation(lifted, ONE)) < TOLERANCE
