"""The kernels against brute-force sums, scipy, autograd, numerical integration and their own samples.

Distributions are compared by Kolmogorov–Smirnov tests at significance 1e-3 with fixed seeds.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp
from torch import Tensor

from adlayer.diffusion.kernels import (
    SCALE_FLOOR,
    Domain,
    ExactKernel,
    Kernel,
    PaperKernel,
    ScaleTable,
    fold,
    minimum_image,
    mirror,
    reduced_frame,
    reflected_normal,
    uniform,
)

BASIS = np.array([[2.9, 0.0], [1.45, 2.9 * 3**0.5 / 2]])
CELLS = {
    "hexagonal": np.array([[4, 0], [0, 4]]) @ BASIS,
    "skewed": np.array([[8, -7], [2, 4]]) @ BASIS,
    "needle": np.array([[1, 0], [0, 6]]) @ BASIS,
    "rectangular": np.diag([5.1, 7.3]),
    "left-handed": np.array([[0.0, 6.0], [5.0, 1.3]]),
}
SIGMAS = [0.005, 0.1, 0.6, 1.5, 2.5, 4.0, 9.0, 20.0]
KERNELS = [ExactKernel(), PaperKernel()]
WINDOW = (11.0, 15.5)


def domain_of(cell: np.ndarray, n_atoms: int, window: tuple[float, float] = WINDOW) -> Domain:
    return Domain(
        torch.from_numpy(cell)[None].double(),
        torch.tensor([window], dtype=torch.float64),
        torch.zeros(n_atoms, dtype=torch.long),
    )


def draw(domain: Domain, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return uniform(domain, torch.rand(len(domain.batch), 3, generator=generator, dtype=torch.float64))


def noise(n_atoms: int, seed: int = 1) -> Tensor:
    return torch.randn(n_atoms, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def level(sigma: float) -> Tensor:
    return torch.tensor([sigma], dtype=torch.float64)


def noised(kernel: Kernel, cell: np.ndarray, sigma: float, n_atoms: int = 60) -> tuple[Tensor, Tensor, Domain]:
    domain = domain_of(cell, n_atoms)
    clean = draw(domain)
    return kernel.perturb(clean, level(sigma), noise(n_atoms), domain), clean, domain


def to_single(domain: Domain) -> Domain:
    return replace(domain, cell=domain.cell.float(), window=domain.window.float())


# fold, mirror, prior, lattice reduction


def reflect_one_by_one(z: float, low: float, high: float) -> tuple[float, int]:
    count = 0
    while not low <= z <= high:
        z, count = (2 * low - z if z < low else 2 * high - z), count + 1
    return z, count


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_fold_is_the_repeated_reflection_and_a_lattice_translation(cell: np.ndarray) -> None:
    domain = domain_of(cell, 400)
    far = draw(domain) + 60.0 * noise(400)
    folded = fold(far, domain)
    fractional = (folded[:, :2] @ domain.inverse[0]).numpy()
    assert ((fractional > -1e-9) & (fractional < 1 + 1e-9)).all()
    shift = ((far - folded)[:, :2] @ domain.inverse[0]).numpy()
    np.testing.assert_allclose(shift, np.round(shift), atol=1e-9)
    expected, counts = zip(*(reflect_one_by_one(z, *WINDOW) for z in far[:, 2].tolist()), strict=True)
    np.testing.assert_allclose(folded[:, 2].numpy(), expected, atol=1e-9)
    np.testing.assert_array_equal(mirror(far, domain)[:, 2].numpy(), (-1.0) ** np.array(counts))
    torch.testing.assert_close(fold(folded, domain), folded, atol=1e-9, rtol=0.0)


def test_fold_keeps_any_finite_position_inside_in_single_precision() -> None:
    domain = to_single(domain_of(CELLS["skewed"], 300))
    folded = fold((noise(300) * 1e12).float(), domain)
    assert torch.isfinite(folded).all()
    assert ((folded[:, 2] >= WINDOW[0]) & (folded[:, 2] <= WINDOW[1])).all()


def test_prior_is_uniform_in_cell_and_window() -> None:
    domain = domain_of(CELLS["skewed"], 20000)
    sample = draw(domain)
    unit = torch.cat([sample[:, :2] @ domain.inverse[0], (sample[:, 2:] - WINDOW[0]) / 4.5], dim=-1).numpy()
    for column in unit.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3


def test_reduction_finds_the_shortest_vectors_of_any_basis() -> None:
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(-60, 61), np.arange(-60, 61)), -1).reshape(-1, 2)
    grid = grid[np.any(grid != 0, axis=1)]
    for cell in CELLS.values():
        frame = reduced_frame(torch.from_numpy(cell)[None])
        lengths = np.sort(np.linalg.norm(grid @ cell, axis=1))
        assert frame.length.item() == pytest.approx(lengths[0], rel=1e-12)
        assert (frame.length * frame.height).item() == pytest.approx(abs(np.linalg.det(cell)), rel=1e-12)
        assert abs(frame.shear.item()) <= frame.length.item() / 2 * (1 + 1e-12)
        for _ in range(5):
            shear = np.array([[1, rng.integers(-5, 6)], [0, 1]]) @ np.array([[1, 0], [rng.integers(-5, 6), 1]])
            other = reduced_frame(torch.from_numpy(shear @ cell)[None])
            assert other.length.item() == pytest.approx(frame.length.item(), rel=1e-10)
            assert other.height.item() == pytest.approx(frame.height.item(), rel=1e-10)


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_minimum_image_is_the_nearest_of_all(cell: np.ndarray) -> None:
    displacement = 30.0 * noise(200)[:, :2]
    frame = reduced_frame(torch.from_numpy(cell)[None])[torch.zeros(200, dtype=torch.long)]
    found = frame.vectors(*minimum_image(*frame.components(displacement), frame)).numpy()
    reduced = np.array([frame.vectors(frame.length, 0 * frame.length)[0].numpy(),
                        frame.vectors(frame.shear, frame.height)[0].numpy()])  # fmt: skip
    rest = displacement.numpy() - np.round(displacement.numpy() @ np.linalg.inv(reduced)) @ reduced
    near = np.stack(np.meshgrid(np.arange(-2, 3), np.arange(-2, 3)), -1).reshape(-1, 2) @ reduced
    lengths = np.linalg.norm(rest[:, None] - near, axis=-1).min(axis=1)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), lengths, atol=1e-10)
    turns = (displacement.numpy() - found) @ np.linalg.inv(cell)
    np.testing.assert_allclose(turns, np.round(turns), atol=1e-9)


# the exact kernel


def brute_force(noisy: Tensor, clean: Tensor, sigma: float, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log density and score by summing normal densities over every image within reach."""
    reach = math.ceil(9.0 * sigma / min(np.abs(np.linalg.det(cell)) / np.linalg.norm(cell, axis=1))) + 9
    n = np.stack(np.meshgrid(np.arange(-reach, reach + 1), np.arange(-reach, reach + 1)), -1).reshape(-1, 2)
    offset = (noisy - clean).numpy()[:, None, :2] - n @ cell  # (M, images, 2)
    exponent = -0.5 * (offset**2).sum(-1) / sigma**2
    weight = np.exp(exponent - logsumexp(exponent, axis=1, keepdims=True))
    planar = logsumexp(exponent, axis=1) - math.log(2 * math.pi * sigma**2)
    width, reach_z = WINDOW[1] - WINDOW[0], math.ceil(9.0 * sigma) + 3
    k = 2 * width * np.arange(-reach_z, reach_z + 1)
    source = clean.numpy()[:, 2:]
    rise = noisy.numpy()[:, 2:] - np.concatenate([source + k, 2 * WINDOW[0] - source + k], axis=1)
    log_z = stats.norm.logpdf(rise, scale=sigma)
    weight_z = np.exp(log_z - logsumexp(log_z, axis=1, keepdims=True))
    score = np.concatenate(
        [-(weight[..., None] * offset).sum(1) / sigma**2, -(weight_z * rise).sum(1, keepdims=True) / sigma**2], axis=1
    )
    return planar + logsumexp(log_z, axis=1), score


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
@pytest.mark.parametrize("sigma", SIGMAS)
def test_exact_kernel_is_the_sum_over_all_images(cell: np.ndarray, sigma: float) -> None:
    noisy, clean, domain = noised(ExactKernel(), cell, sigma, n_atoms=12)
    log_density, score = brute_force(noisy, clean, sigma, cell)
    kernel = ExactKernel()
    np.testing.assert_allclose(kernel.log_density(noisy, clean, level(sigma), domain).numpy(), log_density, atol=1e-11)
    np.testing.assert_allclose(
        kernel.score(noisy, clean, level(sigma), domain).numpy() * sigma, score * sigma, atol=1e-11
    )


def test_two_one_dimensional_sums_do_not_make_an_oblique_torus() -> None:
    """The planted error: images along the Cartesian axes only, by the lengths of the cell vectors."""
    cell, sigma = CELLS["hexagonal"], 3.0
    noisy, clean, _ = noised(ExactKernel(), cell, sigma, n_atoms=40)
    right, _ = brute_force(noisy, clean, sigma, cell)
    wrong, _ = brute_force(noisy, clean, sigma, np.diag(np.linalg.norm(cell, axis=1)))
    assert np.abs(right - wrong).max() > 0.1


@pytest.mark.parametrize("kernel", KERNELS, ids=["exact", "paper"])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_score_is_the_gradient_of_the_log_density(kernel: Kernel, sigma: float) -> None:
    noisy, clean, domain = noised(kernel, CELLS["skewed"], sigma)
    noisy.requires_grad_(True)
    log_density = kernel.log_density(noisy, clean, level(sigma), domain)
    (gradient,) = torch.autograd.grad(log_density.sum(), noisy)
    score = kernel.score(noisy, clean, level(sigma), domain)
    torch.testing.assert_close(gradient * sigma, score * sigma, atol=1e-10, rtol=1e-9)


def all_images(source: float) -> np.ndarray:
    """Heights of the mirror images of an atom, for σ up to a few window widths."""
    k = 2 * (WINDOW[1] - WINDOW[0]) * np.arange(-20, 21)
    return np.concatenate([source + k, 2 * WINDOW[0] - source + k])


def midpoints(domain: Domain, points: int) -> Tensor:
    u = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    unit = torch.cartesian_prod(u, u, u)
    return uniform(replace(domain, batch=torch.zeros(len(unit), dtype=torch.long)), unit)


@pytest.mark.parametrize("sigma", [0.6, 1.2, 1.4, 3.0, 12.0])
def test_exact_kernel_integrates_to_one_with_zero_mean_score_in_the_plane(sigma: float) -> None:
    cell = CELLS["rectangular"] @ np.array([[1.0, 0.2], [0.3, 1.0]])
    domain = domain_of(cell, 1)
    points = midpoints(domain, 32)
    many = replace(domain, batch=torch.zeros(len(points), dtype=torch.long))
    clean = draw(domain).expand_as(points)
    kernel = ExactKernel()
    density = kernel.log_density(points, clean, level(sigma), many).exp()
    volume = abs(np.linalg.det(cell)) * (WINDOW[1] - WINDOW[0])
    assert (density.mean() * volume).item() == pytest.approx(1.0, abs=1e-6)
    mean_score = (density[:, None] * kernel.score(points, clean, level(sigma), many)).mean(0) * volume
    np.testing.assert_allclose(mean_score[:2].numpy() * sigma, 0.0, atol=1e-6)
    # along z it is ∫ ∂p/∂z, the difference of the densities at the walls
    images = all_images(clean[0, 2].item())
    at_walls = [stats.norm.pdf(wall - images, scale=sigma).sum() for wall in WINDOW]
    assert mean_score[2].item() == pytest.approx(at_walls[1] - at_walls[0], abs=2e-3 / sigma)


@pytest.mark.parametrize("sigma", [0.4, 1.3, 5.0])
def test_walls_reflect_and_the_density_solves_the_heat_equation(sigma: float) -> None:
    kernel, cell = ExactKernel(), CELLS["skewed"]
    noisy, clean, domain = noised(kernel, cell, sigma)
    at_wall = noisy.clone()
    at_wall[::2, 2], at_wall[1::2, 2] = WINDOW
    flux = kernel.score(at_wall, clean, level(sigma), domain)[:, 2]
    np.testing.assert_allclose(flux.numpy() * sigma, 0.0, atol=1e-9)

    noisy.requires_grad_(True)
    variance = torch.full((1,), sigma**2, dtype=torch.float64, requires_grad=True)
    each = replace(
        domain, batch=torch.arange(60), cell=domain.cell.repeat(60, 1, 1), window=domain.window.repeat(60, 1)
    )
    variances = variance.expand(60).clone()
    log_density = kernel.log_density(noisy, clean, variances.sqrt(), each)
    (by_variance,) = torch.autograd.grad(log_density.sum(), variances, create_graph=True)
    (gradient,) = torch.autograd.grad(log_density.sum(), noisy, create_graph=True)
    second = sum(torch.autograd.grad(gradient[:, i].sum(), noisy, retain_graph=True)[0][:, i] for i in range(3))
    laplacian = second + gradient.square().sum(-1)  # of p, divided by p
    torch.testing.assert_close(by_variance.detach(), 0.5 * laplacian.detach(), atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("kernel", KERNELS, ids=["exact", "paper"])
@pytest.mark.parametrize("sigma", [0.3, 2.0, 7.0])
def test_nothing_depends_on_the_choice_of_cell(kernel: Kernel, sigma: float) -> None:
    noisy, clean, domain = noised(kernel, CELLS["hexagonal"], sigma)
    other = replace(domain, cell=torch.tensor([[[3.0, 2.0], [4.0, 3.0]]], dtype=torch.float64) @ domain.cell)
    for method in (kernel.score, kernel.log_density):
        torch.testing.assert_close(
            method(noisy, clean, level(sigma), domain), method(noisy, clean, level(sigma), other), atol=1e-9, rtol=1e-9
        )
    torch.testing.assert_close(kernel.score_scale(level(sigma), domain), kernel.score_scale(level(sigma), other))


@pytest.mark.parametrize("kernel", KERNELS, ids=["exact", "paper"])
def test_score_turns_with_the_crystal(kernel: Kernel) -> None:
    noisy, clean, domain = noised(kernel, CELLS["skewed"], 2.5)
    c, s = math.cos(0.7), math.sin(0.7)
    turn = torch.tensor([[c, s, 0], [-s, c, 0], [0, 0, 1]], dtype=torch.float64)
    turned = replace(domain, cell=domain.cell @ turn[:2, :2])
    torch.testing.assert_close(
        kernel.score(noisy @ turn, clean @ turn, level(2.5), turned),
        kernel.score(noisy, clean, level(2.5), domain) @ turn,
    )


@pytest.mark.parametrize("sigma", [0.3, 1.5, 4.0])
def test_exact_samples_follow_the_density(sigma: float) -> None:
    n = 20000
    domain = domain_of(CELLS["skewed"], n)
    clean = draw(domain_of(CELLS["skewed"], 1)).expand(n, 3)
    sample = ExactKernel().perturb(clean, level(sigma), noise(n), domain)
    # along z: the distribution function by images
    images = all_images(clean[0, 2].item())

    def cumulative(z: np.ndarray) -> np.ndarray:
        return (stats.norm.cdf((z[:, None] - images) / sigma) - stats.norm.cdf((WINDOW[0] - images) / sigma)).sum(1)

    assert stats.kstest(sample[:, 2].numpy(), cumulative).pvalue > 1e-3
    # in the plane: Fourier coefficients E cos(G·d) = exp(−σ²G²/2) at every small G, within 4 standard errors
    for k1, k2 in [(1, 0), (0, 1), (1, 1), (1, -1), (2, 1), (0, 2)]:
        g = 2 * math.pi * domain.inverse[0] @ torch.tensor([k1, k2], dtype=torch.float64)
        wave = torch.cos((sample - clean)[:, :2] @ g)
        assert abs(wave.mean() - torch.exp(-0.5 * sigma**2 * g.square().sum())) < 4 * wave.std() / math.sqrt(n)


# the published kernel


@pytest.mark.parametrize("sigma", [0.01, 0.5, 3.0, 40.0])
@pytest.mark.parametrize("source", [11.0, 11.4, 15.49])
def test_paper_kernel_is_the_truncated_normal_along_z(sigma: float, source: float) -> None:
    n = 20000
    domain = domain_of(CELLS["hexagonal"], n)
    clean = torch.tensor([1.0, 2.0, source], dtype=torch.float64).expand(n, 3)
    low, high = (WINDOW[0] - source) / sigma, (WINDOW[1] - source) / sigma
    reference = stats.truncnorm(low, high, loc=source, scale=sigma)
    kernel = PaperKernel()
    sample = kernel.perturb(clean, level(sigma), noise(n), domain)
    assert stats.kstest(sample[:, 2].numpy(), reference.cdf).pvalue > 1e-3
    vertical = sample.clone()
    vertical[:, :2] = clean[:, :2]
    log_density = kernel.log_density(vertical, clean, level(sigma), domain) + math.log(2 * math.pi * sigma**2)
    np.testing.assert_allclose(log_density.numpy(), reference.logpdf(sample[:, 2].numpy()), atol=1e-8)


def test_kernels_agree_where_images_and_walls_are_far() -> None:
    domain = domain_of(CELLS["hexagonal"], 200, window=(0.0, 30.0))
    clean = draw(domain)
    clean[:, 2] = 15.0
    noisy = ExactKernel().perturb(clean, level(0.2), noise(200), domain)
    torch.testing.assert_close(
        ExactKernel().score(noisy, clean, level(0.2), domain), PaperKernel().score(noisy, clean, level(0.2), domain)
    )


# score scale


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: type(k).__name__)
def test_score_scale_at_several_levels_of_one_domain(kernel: Kernel) -> None:
    """What structures of one cell and window share is computed once."""
    domain, levels = domain_of(CELLS["skewed"], 3), torch.tensor([0.05, 0.7, 3.0], dtype=torch.float64)
    together = kernel.score_scale(levels, domain)
    single = torch.cat([kernel.score_scale(sigma[None], domain) for sigma in levels])
    torch.testing.assert_close(together, single, rtol=1e-12, atol=0.0)
    assert together[0, 0] > 2.0 * together[1, 0]


@pytest.mark.parametrize("kernel", KERNELS, ids=["exact", "paper"])
@pytest.mark.parametrize("sigma", [0.005, 0.3, 1.0, 2.2, 3.1, 4.6])
def test_score_scale_is_the_root_mean_square_of_sampled_scores(kernel: Kernel, sigma: float) -> None:
    n = 40_000
    domain = domain_of(CELLS["skewed"], n)
    clean = draw(domain)
    square = kernel.score(kernel.perturb(clean, level(sigma), noise(n), domain), clean, level(sigma), domain).square()
    planar = 0.5 * (square[:, 0] + square[:, 1])
    scale = kernel.score_scale(level(sigma), domain)[0]
    assert scale[0] == scale[1]
    for value, expected in ((planar, scale[0]), (square[:, 2], scale[2])):
        assert abs(value.mean() - expected**2) < 4 * value.std() / math.sqrt(n) + 2e-3 * expected**2


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
@pytest.mark.parametrize("sigma", [0.2, 0.5, 1.0, 1.6, 2.4])
def test_score_scale_agrees_with_dense_integration(cell: np.ndarray, sigma: float) -> None:
    u = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    domain = domain_of(cell, 200 * 200)
    points = uniform(domain, torch.cat([torch.cartesian_prod(u, u), torch.zeros(40000, 1)], dim=-1).double())
    kernel = ExactKernel()
    origin = torch.tensor([0.0, 0.0, WINDOW[0]], dtype=torch.float64).expand_as(points)
    weight = torch.softmax(kernel.log_density(points, origin, level(sigma), domain), dim=0)
    square = kernel.score(points, origin, level(sigma), domain)[:, :2].square().sum(-1)
    dense = math.sqrt(0.5 * (weight * square).sum())
    assert kernel.score_scale(level(sigma), domain)[0, 0].item() == pytest.approx(dense, rel=1e-3)


def test_score_scale_along_z_agrees_with_dense_integration() -> None:
    domain = domain_of(CELLS["hexagonal"], 1)
    width = domain.width
    z = (torch.arange(500, dtype=torch.float64) + 0.5) / 500 * width
    for ratio in (0.012, 0.043, 0.0718, 0.333, 0.9):
        sigma = ratio * width
        log_density, slope = reflected_normal(z[:, None], z, width, sigma)
        dense = math.sqrt((torch.softmax(log_density.flatten(), dim=0) * slope.flatten().square()).sum())
        assert ExactKernel().score_scale(sigma, domain)[0, 2].item() == pytest.approx(dense, rel=2e-3)


@pytest.mark.parametrize("kernel", KERNELS, ids=["exact", "paper"])
def test_score_scale_never_vanishes_in_single_precision(kernel: Kernel) -> None:
    sigma = torch.logspace(-3, 3, 40)
    n = len(sigma)
    domain = Domain(
        torch.from_numpy(CELLS["hexagonal"]).float().repeat(n, 1, 1),
        torch.tensor([WINDOW]).repeat(n, 1),
        torch.arange(n),
    )
    scaled = kernel.score_scale(sigma, domain) * sigma[:, None]
    assert torch.isfinite(scaled).all()
    assert (scaled >= SCALE_FLOOR * (1 - 1e-5)).all()
    assert (scaled <= 1.0 + 1e-4).all()


# precision


@pytest.mark.parametrize("kernel", KERNELS, ids=["exact", "paper"])
@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
@pytest.mark.parametrize("sigma", SIGMAS)
def test_single_precision_agrees_with_double(kernel: Kernel, cell: np.ndarray, sigma: float) -> None:
    """Scores in units of 1/σ to 2e-3 at σ = 0.005 Å (positions in single precision allow no better), 1e-4 above 0.1."""
    noisy, clean, domain = noised(kernel, cell, sigma)
    single = kernel.score(noisy.float(), clean.float(), level(sigma).float(), to_single(domain))
    assert single.dtype == torch.float32
    double = kernel.score(noisy, clean, level(sigma), domain)
    tolerance = 2e-3 if sigma < 0.1 else 1e-4
    torch.testing.assert_close(single.double() * sigma, double * sigma, atol=tolerance, rtol=tolerance)
    density = kernel.log_density(noisy.float(), clean.float(), level(sigma).float(), to_single(domain)).double()
    torch.testing.assert_close(
        density, kernel.log_density(noisy, clean, level(sigma), domain), atol=5 * tolerance, rtol=tolerance
    )
    scale = kernel.score_scale(level(sigma).float(), to_single(domain)).double()
    torch.testing.assert_close(scale, kernel.score_scale(level(sigma), domain), rtol=1e-3, atol=0.0)


def test_structures_of_a_batch_do_not_mix() -> None:
    cells = [CELLS["hexagonal"], CELLS["needle"]]
    domain = Domain(
        torch.from_numpy(np.stack(cells)),
        torch.tensor([WINDOW, (3.0, 8.0)], dtype=torch.float64),
        torch.tensor([0, 1, 0, 1, 1]),
    )
    clean, sigma = draw(domain), torch.tensor([0.4, 2.0], dtype=torch.float64)
    for kernel in KERNELS:
        noisy = kernel.perturb(clean, sigma, noise(5), domain)
        together = kernel.score(noisy, clean, sigma, domain)
        scales = kernel.score_scale(sigma, domain)
        for b in (0, 1):
            own = domain.batch == b
            alone = Domain(
                domain.cell[b : b + 1], domain.window[b : b + 1], torch.zeros(int(own.sum()), dtype=torch.long)
            )
            torch.testing.assert_close(together[own], kernel.score(noisy[own], clean[own], sigma[b : b + 1], alone))
            torch.testing.assert_close(scales[b : b + 1], kernel.score_scale(sigma[b : b + 1], alone))


@pytest.mark.parametrize("name", ["needle", "left-handed"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_table_of_score_scales(kernel: Kernel, name: str) -> None:
    """To the accuracy of the scale itself, which has seams; far better between them."""
    domain = domain_of(CELLS[name], 0)
    sigma = torch.logspace(-2.0, 1.3, 1001, dtype=torch.float64)
    many = Domain(domain.cell.expand(1001, 2, 2), domain.window.expand(1001, 2), domain.batch)
    expected = kernel.score_scale(sigma, many)
    off = ((ScaleTable.of(kernel, domain)(sigma) - expected).abs() / expected).amax(dim=1)
    assert float(off.max()) < 2e-3
    assert float(off.median()) < 1e-5
