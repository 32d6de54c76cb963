"""Losses of batches that are filled up to round sizes, and their replays: graphs are pretended, or real on a GPU."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import signal
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from stand_in import AtOnce, accelerator
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from adlayer import compiled
from adlayer.diffusion import kernels
from adlayer.network import painn
from adlayer.network.graph import Batch
from adlayer.network.heads import Denoiser
from adlayer.network.model import Architecture, Model
from adlayer.network.neighbours import neighbours
from adlayer.training import filling, gradients, trainer
from adlayer.training import graphs as module
from adlayer.training.checkpoint import TrainingState
from adlayer.training.dataset import Dataset
from adlayer.training.filling import Packed, Preparation, filled, round_size
from adlayer.training.gradients import NetworksOnGpu, denoiser_gradients, force_field_gradients
from adlayer.training.graphs import Graphs, filled_pairs
from adlayer.training.losses import collate
from adlayer.training.settings import Settings, make_kernel
from adlayer.training.trainer import make_model, train

pytestmark = pytest.mark.filterwarnings("ignore:training goes on without CUDA graphs. (?!one gives)")  # no CUDA
SETTINGS = Settings(steps=4, batch=4, force_batch=3, repeats=((1, 1), (2, 1)))


def _networks(model: Model, dataset: Dataset, settings: Settings) -> NetworksOnGpu:
    return NetworksOnGpu(model, dataset, make_kernel(settings.kernel), settings, AtOnce(1))


def _gradients(
    model: Model, dataset: Dataset, settings: Settings, step: int, networks: NetworksOnGpu | None
) -> list[Tensor]:
    """Both losses and the gradients of all parameters in one step, by graphs or without."""
    model.zero_grad(set_to_none=False)  # a graph puts gradients where they were when it was made
    if networks is None:
        score = denoiser_gradients(model, dataset, make_kernel(settings.kernel), settings, step)
        force = force_field_gradients(model, dataset, settings, step)
    else:
        score, force = networks.gradients(step)
    none = torch.zeros(())
    gradients = [none if p.grad is None else p.grad.clone() for p in model.parameters()]
    return [torch.tensor([score, force]), *gradients]


def _differ(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest difference, over the largest value of its kind."""
    assert len(found) == len(expected) > 20
    parts = zip(found, expected, strict=True)
    return max(float((a.cpu() - b.cpu()).abs().max() / (b.abs().max().cpu() + 1e-6)) for a, b in parts)


class _Pretended:
    """Does the work anew on the inputs that it was made with, wherever their numbers come from."""

    made = 0

    def __init__(self, function: Callable[[module.Inputs], Tensor], inputs: module.Inputs, pool: object) -> None:
        _Pretended.made += 1
        self.function = function
        self.inputs = replace(inputs, block=inputs.block.clone(), pairs=inputs.pairs.clone())

    def __call__(self, inputs: module.Inputs) -> Tensor:
        self.inputs.block.copy_(inputs.block)
        self.inputs.pairs.copy_(inputs.pairs)
        return self.function(self.inputs)


@pytest.mark.parametrize("kernel", ["exact", "paper"])
def test_what_fills_up_weighs_nothing(kernel: str, dataset: Dataset, tiny: Architecture) -> None:
    """Without CUDA the loss of the filled batch is worked out by PyTorch's operations."""
    settings = replace(SETTINGS, kernel=kernel)
    model = make_model(dataset, tiny, settings).train()
    networks = _networks(model, dataset, settings)
    for step in range(3):
        expected = _gradients(model, dataset, settings, step, None)
        assert _differ(_gradients(model, dataset, settings, step, networks), expected) < 1e-4
    if not torch.cuda.is_available():
        assert not networks.graphs.denoiser.works
        assert not networks.graphs.force_field.works


@pytest.mark.skipif(
    find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1", reason="no Triton, or a GPU"
)
def test_the_same_with_kernels_for_a_gpu(dataset: Dataset, tiny: Architecture, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Triton's interpreter: messages, neighbours, the kernel's score."""
    settings = replace(SETTINGS, batch=2, force_batch=1)
    model = make_model(dataset, tiny, settings).train()
    networks = _networks(model, dataset, settings)
    expected = _gradients(model, dataset, settings, 0, None)
    monkeypatch.setattr(compiled, "for_gpu", lambda device: True)
    assert _differ(_gradients(model, dataset, settings, 0, networks), expected) < 1e-4


def test_a_filling_that_weighs_is_seen(dataset: Dataset, tiny: Architecture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the atoms that fill up belong to the last structure."""

    def wrong(batch: Batch) -> Batch:
        whole = filled(batch)
        return replace(whole, batch=whole.batch.clamp(max=batch.n_structures - 1))

    monkeypatch.setattr(filling, "filled", wrong)
    model = make_model(dataset, tiny, SETTINGS).train()
    expected = _gradients(model, dataset, SETTINGS, 0, None)
    found = _gradients(model, dataset, SETTINGS, 0, _networks(model, dataset, SETTINGS))
    assert not _differ(found, expected) < 1e-3


def test_replays_are_of_their_own_inputs(dataset: Dataset, tiny: Architecture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_Graph", _Pretended)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    _Pretended.made = 0
    model = make_model(dataset, tiny, SETTINGS).train()
    networks = _networks(model, dataset, SETTINGS)
    for step in (0, 1, 2, 0, 1, 2):
        expected = _gradients(model, dataset, SETTINGS, step, None)
        assert _differ(_gradients(model, dataset, SETTINGS, step, networks), expected) < 1e-4
    assert networks.graphs.denoiser.works
    assert 2 <= _Pretended.made <= 6


def test_batches_are_prepared_a_step_ahead(
    dataset: Dataset, tiny: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole training, stopped and gone on with: the weights are those of the other way to rounding."""

    def trained() -> Model:
        states: list[TrainingState] = []
        train(dataset, tiny, replace(SETTINGS, steps=3), on_state=states.append)
        return train(dataset, tiny, replace(SETTINGS, steps=6), state=states[-1])

    expected = trained()
    monkeypatch.setattr(trainer, "Networks", NetworksOnGpu)
    steps: list[int] = []
    prepared = NetworksOnGpu._prepared
    monkeypatch.setattr(NetworksOnGpu, "_prepared", lambda self, step: (steps.append(step), prepared(self, step))[1])
    for a, b in zip(trained().parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=0.0, atol=1e-3 * float(b.detach().abs().max()) + 1e-6)
    assert steps == [0, 1, 2, 3, 3, 4, 5, 6]


def test_worker_processes_draw_the_same(dataset: Dataset, tiny: Architecture) -> None:
    networks = _with_workers(dataset, tiny)
    with closing(networks):
        assert networks._pool is not None
        for step in range(2):
            _alike(networks._draw(step), networks.preparation(step))


def _with_workers(dataset: Dataset, size: Architecture) -> NetworksOnGpu:
    model = make_model(dataset, size, SETTINGS).train()
    return NetworksOnGpu(model, dataset, make_kernel("exact"), SETTINGS, AtOnce(1), workers=2)


def _alike(found: tuple[Packed | None, Packed | None], expected: tuple[Packed | None, Packed | None]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a is not None
        assert b is not None
        assert a[1] == b[1]
        assert (a[0] == b[0]).all()


def test_a_training_survives_its_workers(dataset: Dataset, tiny: Architecture) -> None:
    """Killed, while this process handles what would end it, as the commands do: the others do not live on."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        for _ in range(5):
            networks = _with_workers(dataset, tiny)
            networks._draw(0)
            assert networks._pool is not None
            processes = list(networks._pool._processes.values())
            processes[0].kill()
            with pytest.warns(UserWarning, match="goes on without worker processes: one was killed"):
                _alike([networks._draw(step) for step in range(1, 12)][-1], networks.preparation(11))
            networks.close()
            assert _all_end([process.pid for process in processes])
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("name", ["that do not answer", "that cannot be had"])
def test_a_training_without_workers(
    name: str, dataset: Dataset, tiny: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "that do not answer":
        monkeypatch.setattr(gradients, "_start", partial(time.sleep, 600.0))
        monkeypatch.setattr(gradients, "_PATIENCE", 0.2)
    else:
        monkeypatch.setattr(os, "fork", _refused)
    networks = _with_workers(dataset, tiny)
    assert networks._pool is None
    assert _all_end([process.pid for process in multiprocessing.active_children()])
    _alike(networks._draw(1), networks.preparation(1))


def _all_end(pids: list[int | None]) -> bool:
    """Whether processes are gone soon; another thread may wait for them, too."""
    end = time.monotonic() + 20.0
    while time.monotonic() < end:
        alive = {process.pid for process in multiprocessing.active_children()}
        if not alive & set(pids):
            return True
        time.sleep(0.02)
    return False


def _refused() -> int:
    raise OSError(errno.ENOMEM, "planted")


def test_graphs_go_with_the_training(dataset: Dataset, tiny: Architecture) -> None:
    """Their memory is free at once, not when Python next looks for cycles."""
    model = make_model(dataset, tiny, SETTINGS).train()
    networks = _networks(model, dataset, SETTINGS)
    networks.gradients(0)
    there = weakref.ref(networks.graphs.denoiser)
    gc.disable()
    try:
        networks.close()
        del networks
        assert there() is None
    finally:
        gc.enable()


def test_a_graph_that_is_wrong_is_not_used(
    dataset: Dataset, tiny: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(_Pretended):
        def __call__(self, inputs: module.Inputs) -> Tensor:
            loss = super().__call__(inputs)
            for parameter in self.function.__self__.parameters:  # of its own network
                parameter.grad *= 1.01
            return loss

    monkeypatch.setattr(module, "_Graph", Wrong)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    model = make_model(dataset, tiny, SETTINGS).train()
    networks = _networks(model, dataset, SETTINGS)
    expected = _gradients(model, dataset, SETTINGS, 0, None)
    with pytest.warns(UserWarning, match="one gives other gradients"):
        assert _differ(_gradients(model, dataset, SETTINGS, 0, networks), expected) < 1e-4
    assert not networks.graphs.denoiser.works
    assert _differ(_gradients(model, dataset, SETTINGS, 0, networks), expected) < 1e-4


def test_batches_and_edges_have_round_sizes(dataset: Dataset) -> None:
    batch = collate(dataset.train[:3], [(10.0, 14.0)] * 3)
    whole = filled(batch)
    n_mobile, n = int(whole.mobile.sum()), len(whole.numbers)
    assert n_mobile == round_size(int(batch.mobile.sum()))
    assert n - n_mobile == round_size(int((~batch.mobile).sum()))
    assert whole.n_structures == batch.n_structures + 1
    assert torch.equal(whole.positions[: len(batch.numbers)], batch.positions)
    edges = neighbours(batch, 5.0)
    more = module.Inputs(torch.empty(0), (), filled_pairs(edges, n)).edges(edges.shift.dtype)
    assert more.n_pairs == round_size(edges.n_pairs)
    for there, theirs in ((more.receiver, edges.receiver), (more.sender, edges.sender), (more.shift, edges.shift)):
        for way in (0, 1):
            assert torch.equal(there.chunk(2)[way][: edges.n_pairs], theirs.chunk(2)[way])
    added = more.receiver[edges.n_pairs : more.n_pairs]
    counts = torch.bincount(added, minlength=n)
    assert int(counts.max() - counts.min()) <= 1  # no atom has to wait for another's


class _Recording(TorchDispatchMode):
    """Refuses what a graph cannot record: to read a value, to make a result of unknown size, to copy across devices."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.split("::")[1]
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        by_mask = name == "index" and any(x.dtype == torch.bool for x in tensors[1:])
        if by_mask or name in {"_local_scalar_dense", "nonzero", "masked_select", "_linalg_check_errors", "bincount"}:
            raise RuntimeError(f"{name} waits for the device")
        wanted = (kwargs or {}).get("device")
        if name in {"_to_copy", "copy_"} and len({x.device for x in tensors} | ({wanted} - {None})) > 1:
            raise RuntimeError(f"{name} copies between devices")
        return function(*args, **(kwargs or {}))


class _Ends:
    """Stands for the edges' ends on a GPU."""

    def __init__(self, first: Tensor, second: Tensor, n_receivers: int) -> None:
        self.n_receivers = n_receivers

    def onto(self, read_out: Tensor, n_receivers: int) -> _Ends:
        return _Ends(read_out, read_out, n_receivers)


def _message(ends: _Ends, c: Tensor, v: Tensor, w: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Something of the message's shape that depends on all that the message depends on."""
    features = v.shape[-1]
    mixed = ((c[:, :features] + v.sum(0)) * (w.sum() + u.sum()))[: ends.n_receivers]
    return mixed, mixed.expand(3, ends.n_receivers, features)


@pytest.mark.parametrize("kernel", ["exact", "paper"])
def test_what_is_recorded_never_waits(
    kernel: str, dataset: Dataset, tiny: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a pretended device, with another message in place of that of the kernels."""
    model, recorded = _recorded(dataset, replace(tiny, lift=1.1), replace(SETTINGS, kernel=kernel), monkeypatch)
    assert len(recorded) == len(list(model.parameters()))
    assert sum(bool(g.any()) for g in recorded) > 20


@pytest.mark.parametrize("name", ["rows of the overlayer", "a table on the host"])
def test_what_would_wait_is_seen(
    name: str, dataset: Dataset, tiny: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "rows of the overlayer":
        known = Denoiser.forward
        monkeypatch.setattr(Denoiser, "forward", lambda self, *arguments: known(self, *arguments[:-1]))
    else:
        table = kernels._information_table(torch.float32, torch.device("cpu"))
        monkeypatch.setattr(kernels, "_information_table", lambda dtype, device: table.to(device))
    with pytest.raises(RuntimeError, match=r"waits for the device|between devices"):
        _recorded(dataset, tiny, SETTINGS, monkeypatch)


def _recorded(
    dataset: Dataset, size: Architecture, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> tuple[Model, list[Tensor]]:
    """A model and the gradients of its losses, zeros where there are none."""
    monkeypatch.setattr(painn, "device_ends", _Ends)
    monkeypatch.setattr(painn.Message, "apply", _message)
    known = module.Gradients._plain

    def plain(self: module.Gradients, inputs: module.Inputs) -> Tensor:
        self.loss(inputs)  # what is done once, is done now
        with _Recording():
            return known(self, inputs)

    monkeypatch.setattr(module.Gradients, "_plain", plain)
    with accelerator() as device:
        model = make_model(dataset, size, settings).to(device).train()
        kernel = make_kernel(settings.kernel)
        graphs, host = Graphs(model, kernel), torch.device("cpu")
        preparation = Preparation(dataset, model.card, settings, kernel, torch.zeros(119, dtype=torch.float64), host)
        examples, frames = preparation(0)
        assert examples is not None
        assert frames is not None
        graphs.denoiser(graphs.inputs(model.denoiser, examples))
        graphs.force_field(graphs.inputs(model.force_field, frames))
    return model, [p.grad for p in model.parameters()]


@contextmanager
def _counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How often real graphs are replayed."""
    replayed: list[int] = []
    call = module._Graph.__call__
    monkeypatch.setattr(module._Graph, "__call__", lambda self, inputs: (replayed.append(1), call(self, inputs))[1])
    yield replayed


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["exact", "paper"])
def test_real_graphs(kernel: str, dataset: Dataset, tiny: Architecture, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SETTINGS, kernel=kernel)
    model = make_model(dataset, tiny, settings).train().to("cuda")
    networks = _networks(model, dataset, settings)
    with _counted(monkeypatch) as replayed:
        for step in (0, 1, 2, 0, 1, 2):
            expected = _gradients(model, dataset, settings, step, None)
            assert _differ(_gradients(model, dataset, settings, step, networks), expected) < 1e-3
    assert networks.graphs.denoiser.works
    assert networks.graphs.force_field.works
    assert len(replayed) >= 6
