"""Normal form, reduction and symmetry of sublattices against brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adlayer.structures.sublattices import (
    hermite_form,
    images,
    integer_operations,
    lattice_operations,
    reduced_matrix,
    sublattices,
)

HEXAGONAL = 2.9465 * np.array([[1.0, 0.0], [0.5, np.sqrt(3) / 2]])
SQUARE = 2.9 * np.eye(2)
RECTANGULAR = np.diag([2.95, 4.17])
RHOMBIC = 2.74 * np.array([[1.0, 0.0], [1 / 3, np.sqrt(8) / 3]])  # bcc(110)
OBLIQUE = np.array([[2.5, 0.0], [0.7, 3.1]])
BASES = {"p6mm": HEXAGONAL, "p4mm": SQUARE, "p2mm": RECTANGULAR, "c2mm": RHOMBIC, "p2": OBLIQUE}
matrices = st.lists(st.integers(-7, 7), min_size=4, max_size=4).map(lambda v: np.reshape(v, (2, 2)))
regular = matrices.filter(lambda m: round(np.linalg.det(m)) != 0)
SHEARS = [np.array(m) for m in ([[1, 1], [0, 1]], [[1, 0], [1, 1]], [[0, 1], [1, 0]], [[-1, 0], [0, 1]])]
unimodular = st.lists(st.sampled_from(SHEARS), max_size=8).map(
    lambda ms: np.linalg.multi_dot([np.eye(2, dtype=int)] * 2 + ms)
)


@given(regular, unimodular)
def test_the_normal_form_names_the_sublattice(matrix, change):
    a, b, d = hermite_form(matrix)
    assert a > 0
    assert 0 <= b < d
    assert a * d == abs(round(np.linalg.det(matrix)))
    assert hermite_form(change @ matrix) == (a, b, d)
    same = np.array([[a, b], [0, d]]) @ np.linalg.inv(matrix)
    np.testing.assert_allclose(same, np.rint(same), atol=1e-9)


@given(regular, regular)
def test_different_sublattices_have_different_forms(one, other):
    quotient = one @ np.linalg.inv(other)
    same = np.abs(quotient - np.rint(quotient)).max() < 1e-6 and abs(abs(np.linalg.det(quotient)) - 1) < 1e-6
    assert (hermite_form(one) == hermite_form(other)) == same


@pytest.mark.parametrize(("name", "order"), [("p6mm", 12), ("p4mm", 8), ("p2mm", 4), ("c2mm", 4), ("p2", 2)])
@pytest.mark.parametrize("skew", [[[1, 0], [0, 1]], [[1, 0], [-1, 1]], [[2, 1], [3, 2]]])
def test_point_groups_of_the_plane_lattices(name, order, skew):
    basis = np.array(skew) @ BASES[name]
    operations = lattice_operations(basis)
    assert len(operations) == order
    np.testing.assert_allclose(
        operations @ (basis @ basis.T) @ operations.transpose(0, 2, 1), [basis @ basis.T] * order
    )
    members = {tuple(u.ravel()) for u in operations}
    assert {tuple((u @ v).ravel()) for u in operations for v in operations} == members
    rotations = np.linalg.inv(basis) @ operations @ basis  # rows; transposed they act on columns
    assert {tuple(u.ravel()) for u in integer_operations(np.swapaxes(rotations, 1, 2), basis)} == members


@given(regular, st.sampled_from(sorted(BASES)))
def test_reduced_cells_are_the_shortest_of_their_sublattice(matrix, name):
    basis = BASES[name]
    reduced = reduced_matrix(matrix, basis)
    assert hermite_form(reduced) == hermite_form(matrix)
    assert np.linalg.det(reduced) > 0
    vectors = reduced @ basis
    lengths = np.linalg.norm(vectors, axis=1)
    assert -1e-6 < vectors[0] @ vectors[1] / lengths.prod() < 0.5 + 1e-6
    steps = np.array([s for s in itertools.product(range(-3, 4), repeat=2) if any(s)])
    every = np.sort(np.linalg.norm(steps @ vectors, axis=1))
    assert lengths.min() == pytest.approx(every[0])
    independent = [s for s in steps if abs(s[0]) + abs(s[1]) and s[int(lengths[1] >= lengths[0])] != 0]
    assert lengths.max() == pytest.approx(np.linalg.norm(independent @ vectors, axis=1).min())


def test_every_sublattice_is_listed_once():
    for index in range(1, 13):
        found = sublattices(index)
        assert len(found) == len(set(found)) == sum(d for d in range(1, index + 1) if index % d == 0)
        assert all(hermite_form(np.array([[a, b], [0, d]])) == (a, b, d) for a, b, d in found)


def test_images_begin_with_the_sublattice_itself():
    matrix = np.array([[3, -1], [1, 2]])
    found = images(matrix, lattice_operations(HEXAGONAL))
    assert len(found) == 2
    assert next(iter(found)) == hermite_form(matrix)
    assert all(hermite_form(image) == form for form, image in found.items())
