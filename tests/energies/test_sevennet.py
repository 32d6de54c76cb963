"""SevenNet with our kernels against upstream's own path, and its convolution against e3nn's tensor product."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from torch import Tensor

from adlayer import compiled
from adlayer.energies import calculators, convolution, sevennet
from adlayer.energies.calculators import make_calculator
from adlayer.energies.convolution import Convolution, Pairs
from adlayer.structures.placement import place_overlayer
from adlayer.structures.substrate import build_substrate

pytest.importorskip("sevenn", reason="needs the extra sevennet")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(shutil.which(os.environ.get("CC", "cc")) is None, reason="no C compiler"),
]
ENERGY, FORCE, VIRIAL = 3e-6, 3e-5, 1e-4  # eV/atom, eV/Å, eV: single precision

# The convolution, in double precision.


@pytest.fixture
def double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Double precision, and nothing left in the user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def _layer(results: str) -> Any:
    """Upstream's convolution of a few channels; their numbers are no multiples of what a processor takes at once."""
    from e3nn.o3 import Irreps
    from sevenn.nn.convolution import IrrepsConvolution

    irreps = [Irreps(x) for x in ("7x0e+3x1e+2x2e", "1x0e+1x1e+1x2e", results)]
    return IrrepsConvolution(*irreps, [2], denominator=1.75, lazy_layer_instantiate=False)


def _arguments(shape: Convolution, n_pairs: int = 6, n_atoms: int = 4) -> tuple[Pairs, list[Tensor]]:
    """Six pairs of four atoms, one of them an atom and its own image; y, w and the blocks."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(n_pairs, shape.n_harmonics), (n_pairs, shape.n_weights)]
    sizes += [(n_atoms * (2 * degree + 1), channels) for degree, channels in shape.blocks]
    tensors = [torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_() for size in sizes]
    first, second = torch.tensor([0, 0, 0, 1, 2, 3]), torch.tensor([1, 1, 2, 3, 2, 0])
    return Pairs(first[:n_pairs], second[:n_pairs], n_atoms), tensors


def _rows(parts: tuple[tuple[int, int], ...], blocks: list[Tensor], n_atoms: int) -> Tensor:
    """Blocks in upstream's order, an atom a row."""
    shaped = [b.view(n_atoms, 2 * part[0] + 1, part[1]) for part, b in zip(parts, blocks, strict=True)]
    return torch.cat([b.transpose(1, 2).reshape(n_atoms, -1) for b in shaped], dim=1)


def _upstream(layer: Any, shape: Convolution, pairs: Pairs, tensors: list[Tensor]) -> Tensor:
    """The same by e3nn's tensor product, edge by edge."""
    y, w, *blocks = tensors
    x = _rows(shape.blocks, blocks, pairs.n_atoms)
    receiver, sender = torch.cat([pairs.first, pairs.second]), torch.cat([pairs.second, pairs.first])
    back = y * torch.tensor([(-1.0) ** degree for degree in shape.harmonics for _ in range(2 * degree + 1)])
    messages = layer.convolution(x[sender], torch.cat([y, back]), torch.cat([w, w]))
    return torch.zeros(pairs.n_atoms, messages.shape[1]).index_add(0, receiver, messages) / layer.denominator


def _with_gradients(result: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1.0, 1.0, result.numel()).view_as(result)
    return [result.detach(), *torch.autograd.grad((weights * result).sum(), tensors)]


def _largest_difference(layer: Any, shape: Convolution) -> float:
    """Of results and gradients, ours and upstream's, in parts of the largest."""
    pairs, tensors = _arguments(shape)
    ours = _with_gradients(_rows(shape.groups, list(shape(pairs, *tensors[:2], tensors[2:])), 4), tensors)
    theirs = _with_gradients(_upstream(layer, shape, pairs, tensors), tensors)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))


EXACT = 1e-13


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("results", ["1x0e+1x1e+1x2e", "1x0e"])
def test_convolution_equals_the_tensor_product(results: str) -> None:
    layer = _layer(results)
    assert _largest_difference(layer, sevennet.read_convolution(layer)) < EXACT


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("path", [5, 14])
def test_the_comparison_sees_a_coefficient_that_is_a_little_off(path: int) -> None:
    layer = _layer("1x0e+1x1e+1x2e")
    shape = sevennet.read_convolution(layer)
    wrong = shape.paths[path].coefficients.clone()
    wrong[tuple(wrong.nonzero()[-1])] *= 1.0 + 1e-9
    paths = [replace(p, coefficients=wrong) if n == path else p for n, p in enumerate(shape.paths)]
    assert _largest_difference(layer, replace(shape, paths=tuple(paths))) > 10 * EXACT


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("kernel", "result"), [("message", 0), ("gradient", 0), ("gradient", 1), ("gradient", 2)])
def test_the_comparison_sees_a_kernel_that_is_a_little_off(
    kernel: str, result: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = convolution._run

    def wrong(name: str, shape: Any, pairs: Any, arguments: Any, results: Any) -> None:
        run(name, shape, pairs, arguments, results)
        if name == kernel:
            part = results[result] if isinstance(results[result], Tensor) else results[result][-1]
            part.view(-1)[0] += 1e-9

    monkeypatch.setattr(convolution, "_run", wrong)
    layer = _layer("1x0e+1x1e+1x2e")
    assert _largest_difference(layer, sevennet.read_convolution(layer)) > 10 * EXACT


@pytest.mark.usefixtures("double")
def test_gradients_are_those_of_the_results() -> None:
    """Finite differences."""
    shape = sevennet.read_convolution(_layer("1x0e+1x1e"))
    pairs, tensors = _arguments(shape)
    assert torch.autograd.gradcheck(lambda y, w, *x: shape(pairs, y, w, x), tensors, fast_mode=True)


@pytest.mark.usefixtures("double")
def test_no_pairs_no_message() -> None:
    shape = sevennet.read_convolution(_layer("1x0e+1x1e"))
    pairs, (y, w, *blocks) = _arguments(shape, n_pairs=0)
    assert all(not group.any() for group in shape(pairs, y, w, tuple(blocks)))


# The calculator.


def _slab(cell: str, overlayer: str, seed: int = 0) -> Atoms:
    substrate = build_substrate("Ag(111)", cell, layers=2, fixed_layers=1, lattice=4.167, window=(1.0, 4.0))
    atoms = place_overlayer(substrate, overlayer, np.random.default_rng(seed))
    atoms.constraints = []
    return atoms


STRUCTURES = {
    "slab": _slab("p(2x2)", "Ag2O2"),
    "smaller than the cutoff": _slab("p(1x1)", "O"),  # pairs of an atom and its own images
    "bulk, one atom": Atoms("Ag", cell=2.05 * (1 - np.eye(3)), pbc=True),
    "molecule": molecule("H2O"),
    "atom": Atoms("O"),
}


@pytest.fixture(scope="module")
def upstream() -> Any:
    from sevenn.calculator import SevenNetCalculator

    return SevenNetCalculator("7net-0", device="cpu")


@pytest.fixture(scope="module")
def ours(upstream: Any) -> Any:
    return sevennet.fast(upstream)


def _results(calculator: Any, atoms: Atoms) -> dict[str, Any]:
    calculator.calculate(atoms)
    return dict(calculator.results)


def _differences(a: dict[str, Any], b: dict[str, Any], volume: float) -> list[float]:
    """Largest differences in energies, forces and the virial, in parts of what is allowed."""
    assert a["energy"] == a["free_energy"]
    energy = abs(a["energy"] - b["energy"]) / len(a["energies"])
    energies, forces, stress = (float(np.abs(a[k] - b[k]).max()) for k in ("energies", "forces", "stress"))
    return [energy / ENERGY, energies / (3 * ENERGY), forces / FORCE, max(volume, 1e-3) * stress / VIRIAL]


@pytest.mark.parametrize("structure", STRUCTURES)
def test_equal_to_upstream(structure: str, ours: Any, upstream: Any) -> None:
    atoms = STRUCTURES[structure]
    fast, plain = _results(ours, atoms), _results(upstream, atoms)
    assert max(_differences(fast, plain, atoms.cell.volume)) < 1.0
    assert fast["num_edges"] == plain["num_edges"]
    assert all(np.shape(fast[k]) == np.shape(plain[k]) for k in plain)


@pytest.mark.parametrize(("kernel", "off"), [("message", [0, 1, 2]), ("gradient", [2, 3])])
def test_the_comparison_sees_small_mistakes(
    kernel: str, off: list[int], ours: Any, upstream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One part in ten thousand more from one kernel."""
    run = convolution._run

    def wrong(name: str, shape: Any, pairs: Any, arguments: Any, results: Any) -> None:
        run(name, shape, pairs, arguments, results)
        for part in results[0] if name == kernel else ():
            part *= 1.0 + 1e-4

    atoms = STRUCTURES["slab"]
    right = _results(upstream, atoms)
    monkeypatch.setattr(convolution, "_run", wrong)
    differences = _differences(_results(ours, atoms), right, atoms.cell.volume)
    assert all(differences[n] > 1.0 for n in off)


def test_forces_are_gradients_of_the_energy(ours: Any) -> None:
    """Central differences, as well as single precision allows."""
    atoms = STRUCTURES["slab"].copy()
    atoms.calc = ours
    force = atoms.get_forces()[-1]
    for axis in range(3):
        energies = []
        for step in (0.01, -0.01):
            moved = atoms.copy()
            moved.positions[-1, axis] += step
            ours.calculate(moved)
            energies.append(float(ours.results["energy"]))
        assert force[axis] == pytest.approx((energies[1] - energies[0]) / 0.02, abs=0.02, rel=0.02)


def test_the_name_sevennet_takes_the_kernels() -> None:
    assert isinstance(make_calculator("sevennet"), sevennet.SevenNet)


def test_without_a_compiler_upstream_computes(ours: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    atoms = STRUCTURES["smaller than the cutoff"]
    fast = _results(ours, atoms)
    monkeypatch.setattr(compiled, "library", compiled.library.__wrapped__)  # nothing remembered
    monkeypatch.setenv("CC", "no-such-compiler")
    calculator = calculators._made.__wrapped__("sevennet", "")
    assert type(calculator).__name__ == "SevenNetCalculator"
    assert max(_differences(fast, _results(calculator, atoms), atoms.cell.volume)) < 1.0


def _break(upstream: Any, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = upstream.model._modules
    if how == "a module more":
        monkeypatch.setitem(modules, "one_more", torch.nn.Identity())
    elif how == "a module less":
        monkeypatch.delitem(modules, "force_output")
    elif how == "another kind of module":
        monkeypatch.setitem(modules, "reduce_input_to_hidden", torch.nn.Identity())
    elif how == "another kind of product":
        monkeypatch.setattr(modules["1_convolution"].convolution, "instructions", [object()])
    elif how == "another kind of activation":
        monkeypatch.setitem(modules["1_convolution"].weight_nn.layer0._modules, "act", None)
    else:
        monkeypatch.setattr(upstream, *{"modal": ("modal", "a"), "virial": ("compute_atomic_virial", True)}[how])


@pytest.mark.parametrize(
    "how",
    [
        "a module more",
        "a module less",
        "another kind of module",
        "another kind of product",
        "another kind of activation",
        "modal",
        "virial",
    ],
)
def test_other_models_stay_with_upstream(how: str, upstream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _break(upstream, how, monkeypatch)
    assert sevennet.fast(upstream) is None
    monkeypatch.undo()
    assert sevennet.fast(upstream) is not None


def test_elements_that_the_model_does_not_know(ours: Any) -> None:
    with pytest.raises(ValueError, match="atomic number"):
        Atoms("Rn").calc = ours
    with pytest.raises(ValueError, match="atomic number"):
        ours.calculate(Atoms("Rn"))


@pytest.mark.slow
def test_the_larger_model() -> None:
    from sevenn.calculator import SevenNetCalculator

    upstream, atoms = SevenNetCalculator("7net-l3i5", device="cpu"), STRUCTURES["slab"]
    ours = sevennet.fast(upstream)
    assert ours is not None
    assert max(_differences(_results(ours, atoms), _results(upstream, atoms), atoms.cell.volume)) < 1.0
