"""PaiNN: polarizable atom interaction neural network (Schütt, Unke & Gastegger, ICML 2021), conditioned.

Atom ``i`` carries scalars ``s_i`` (F) and vectors ``v_i`` (3, F). With edges ``r_ij = x_j − x_i`` of length ``d``:

- message (Eqs. 7 and 8): ``x_j = φ(s_j) ∘ W(d)``, split in three;
  ``Δs_i = Σ_j x¹_j``, ``Δv_i = Σ_j (v_j ∘ x²_j + r̂_ij x³_j)``, where ``W(d) = (A rbf(d) + b) f_cut(d)``;
- update (Eqs. 9 and 10): ``a = ψ(s_i, ‖V v_i‖)``, split in three;
  ``Δs_i = a¹ + a² ⟨U v_i, V v_i⟩``, ``Δv_i = a³ ∘ U v_i``.

Ours adds, for the denoiser, a condition vector ``c`` of each structure (noise level and the like) to the scalars that
enter every message and update, and lets the edges of the last message end on the atoms that are read out only.
Without conditions it is the published network. The message runs on kernels where there are any
(:mod:`adlayer.network.message`), else on PyTorch's operations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from adlayer import compiled
from adlayer.network.message import Ends, Message, available, device_ends
from adlayer.network.neighbours import Edges

# Not used, and freed at once: the GNU allocator learns from a mapped block just below its limit of 32 MiB to keep freed
# memory. Otherwise most of the time goes into mapping every intermediate result anew.
torch.empty(31 << 20, dtype=torch.uint8)


_LEAST_EXPONENT = -60.0  # e⁻⁶⁰ is nothing, but far above the numbers that processors are slow with
_MULTIPLE = 8  # to which the rows of the basis are filled up with zeros: products of such rows are up to twice as fast


class RadialBasis(nn.Module):
    """``n`` Gaussians between 0 and the cutoff (Å), one spacing wide: (E,) → (E, n)."""

    centres: Tensor

    def __init__(self, n: int, cutoff: float) -> None:
        super().__init__()
        self.register_buffer("centres", torch.linspace(0.0, cutoff, n), persistent=False)
        self.coefficient = -0.5 / (cutoff / (n - 1)) ** 2

    def forward(self, distance: Tensor) -> Tensor:
        exponent = self.coefficient * (distance[:, None] - self.centres) ** 2
        return torch.exp(exponent.clamp(min=_LEAST_EXPONENT))


def cosine_cutoff(distance: Tensor, cutoff: float) -> Tensor:
    """``½ (1 + cos(π d / r_c))`` inside the cutoff, 0 outside (Behler & Parrinello 2007)."""
    return 0.5 * (1.0 + torch.cos(math.pi / cutoff * distance)) * (distance < cutoff)


@dataclass(frozen=True)
class Condition:
    """A vector of each structure, and the structure of each atom."""

    vectors: Tensor  # (B, C)
    structure: Tensor  # (N,)

    def of_atoms(self, layer: nn.Linear) -> Tensor:
        """The layer's image of the condition of each atom, computed once for a structure."""
        image: Tensor = layer(self.vectors)
        return image.index_select(0, self.structure)

    def at(self, rows: Tensor) -> Condition:
        """For the atoms of the given rows alone."""
        return Condition(self.vectors, self.structure.index_select(0, rows))


@dataclass(frozen=True)
class Geometry:
    """What a message needs of the edges: E edges, in P pairs of the same length or each for itself (P = E).

    Vectors are held component by component, (3, N, F), so that products run over contiguous memory.
    """

    receiver: Tensor  # (E,)
    sender: Tensor  # (E,)
    basis: Tensor  # (P, n + 1 and more) radial functions and 1, times the cutoff function; zeros
    unit: Tensor  # (3, P); the second half of paired edges points the other way
    n_senders: int
    n_receivers: int
    n_ways: int  # E/P
    on_device: Any = None  # what stands for the ends on a GPU with kernels

    @property
    def ends(self) -> Any:
        """What the kernels are given of the edges, where there are kernels."""
        if self.on_device is not None:
            return self.on_device
        return Ends(self.receiver, self.sender, self.n_senders, self.n_receivers) if available(self.basis) else None

    def onto(self, rows: Tensor, n: int) -> Geometry:
        """The edges that end on the n atoms where ``rows`` (N,) is true, which are then numbered from 0."""
        if self.on_device is not None:
            return replace(self, on_device=self.on_device.onto(rows, n))
        chosen = rows.index_select(0, self.receiver).nonzero()[:, 0]
        number, pair = rows.cumsum(0) - 1, chosen % len(self.basis)
        sign = 1.0 - 2.0 * (chosen >= len(self.basis)).to(self.unit.dtype)
        return Geometry(
            number.index_select(0, self.receiver.index_select(0, chosen)),
            self.sender.index_select(0, chosen),
            self.basis.index_select(0, pair),
            self.unit.index_select(1, pair) * sign,
            self.n_senders,
            n,
            1,
        )

    def sent(self, values: Tensor, *, signed: bool = False) -> Tensor:
        """(C, N, F) at the senders, by way and pair (C, E/P, P, F); ``signed``: minus on the way back."""
        c, n, f = values.shape
        if signed and self.n_ways == 2:
            there, back = self.sender.chunk(2)
            rows = torch.cat([there, back + n])
            return torch.cat([values[0], -values[0]]).index_select(0, rows).view(1, 2, -1, f)
        gathered = values.reshape(-1, f).index_select(0, _repeated(self.sender, c, n))
        return gathered.view(c, self.n_ways, len(self.basis), f)

    def summed(self, messages: Tensor) -> Tensor:
        """(C, E/P, P, F) summed at the receivers (C, R, F)."""
        c, f = len(messages), messages.shape[-1]
        rows = _repeated(self.receiver, c, self.n_receivers)
        total = messages.new_zeros(c * self.n_receivers, f).index_add(0, rows, messages.reshape(-1, f))
        return total.view(c, self.n_receivers, f)


def _repeated(index: Tensor, times: int, n: int) -> Tensor:
    """Indices into a table repeated ``times``, each ``n`` rows long."""
    if times == 1:
        return index
    return (index + n * torch.arange(times, device=index.device)[:, None]).flatten()


class Interaction(nn.Module):
    """The message of PaiNN, Eqs. 7 and 8."""

    def __init__(self, features: int, n_radial: int, n_condition: int) -> None:
        super().__init__()
        self.context = nn.Sequential(nn.Linear(features, features), nn.SiLU(), nn.Linear(features, 3 * features))
        self.filter = nn.Linear(n_radial, 3 * features)
        self.condition = nn.Linear(n_condition, features) if n_condition else None

    def forward(
        self, s: Tensor, v: Tensor | None, condition: Condition | None, geometry: Geometry
    ) -> tuple[Tensor, Tensor]:
        """``Δs`` (R, F) and ``Δv`` (3, R, F) of (N, F) and (3, N, F); no ``v`` stands for zeros."""
        if self.condition is not None and condition is not None:
            s = s + condition.of_atoms(self.condition)
        context = self.context(s)  # (N, 3F)
        weights = torch.cat([self.filter.weight, self.filter.bias[:, None]], dim=1)  # (3F, n + 1)
        weights = torch.nn.functional.pad(weights, (0, geometry.basis.shape[1] - weights.shape[1]))
        ends = geometry.ends
        if ends is not None:
            v = s.new_zeros(3, *s.shape) if v is None else v
            filters = geometry.basis @ weights.T  # (P, 3F)
            found: tuple[Tensor, Tensor] = Message.apply(ends, context, v, filters, geometry.unit)
            return found
        scalar, gate, direction = context.chunk(3, dim=-1)  # (N, F) each
        parts = [geometry.basis @ weight.T for weight in weights.chunk(3)]  # (P, F) each
        along = (geometry.unit[:, :, None] * parts[2])[:, None]  # (3, 1, P, F)
        moved = geometry.sent(direction[None], signed=True) * along
        if v is not None:
            moved = moved + geometry.sent(v * gate) * parts[1]
        return geometry.summed(geometry.sent(scalar[None]) * parts[0])[0], geometry.summed(moved)


class Mixing(nn.Module):
    """The update of PaiNN, Eqs. 9 and 10."""

    def __init__(self, features: int, n_condition: int, epsilon: float) -> None:
        super().__init__()
        self.channels = nn.Linear(features, 2 * features, bias=False)
        self.context = nn.Sequential(nn.Linear(2 * features, features), nn.SiLU(), nn.Linear(features, 3 * features))
        self.condition = nn.Linear(n_condition, 2 * features) if n_condition else None
        self.epsilon = epsilon

    def forward(self, s: Tensor, v: Tensor, condition: Condition | None) -> tuple[Tensor, Tensor]:
        more, structure = None, None
        if self.condition is not None and condition is not None:
            more, structure = self.condition(condition.vectors), condition.structure
        kernels = import_module("adlayer.network.gpu.mixing") if compiled.for_gpu(s.device) else None
        join, update = (joined, updated) if kernels is None else (kernels.joined, kernels.updated)
        both, dot, second = join(s, self.channels(v), more, structure, self.epsilon)
        found: tuple[Tensor, Tensor] = update(s, v, second, dot, self.context(both))
        return found


def joined(
    s: Tensor, mixed: Tensor, more: Tensor | None, structure: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Scalars and the lengths of the first images of vectors (N, 2F); their products with the second; the second.

    Parameters
    ----------
    s, mixed
        Scalars (N, F); both images of vectors (3, N, 2F).
    more, structure
        What is added to the first result for each structure (B, 2F), and the structure of each atom (N,).
    epsilon
        Keeps a length away from 0.
    """
    v_norm, v_mix = mixed.chunk(2, dim=-1)  # (3, N, F) each
    norm = torch.sqrt((v_norm**2).sum(dim=0) + epsilon)  # (N, F)
    both = torch.cat([s, norm], dim=-1)
    if more is not None and structure is not None:
        both = both + more.index_select(0, structure)
    return both, (v_norm * v_mix).sum(dim=0), v_mix


def updated(s: Tensor, v: Tensor, second: Tensor, dot: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """New scalars (N, F) and vectors (3, N, F), of what :func:`joined` gives and the three parts of a (N, 3F)."""
    scalar, gate, product = a.chunk(3, dim=-1)  # (N, F) each
    return s + scalar + product * dot, v + gate * second


class PaiNN(nn.Module):
    """Interactions and mixings, one after the other.

    Parameters
    ----------
    features, interactions, n_radial, cutoff
        Size of the network; cutoff in Å. Published: 64, 4, 30, 6 Å.
    n_condition
        Length of the condition vector of each atom; 0 for none.
    """

    epsilon = 1e-8  # keeps the length of a vector away from 0

    def __init__(self, features: int, interactions: int, n_radial: int, cutoff: float, n_condition: int = 0) -> None:
        super().__init__()
        self.features, self.cutoff = features, cutoff
        self.radial = RadialBasis(n_radial, cutoff)
        self.interactions = nn.ModuleList(Interaction(features, n_radial, n_condition) for _ in range(interactions))
        self.mixings = nn.ModuleList(Mixing(features, n_condition, self.epsilon) for _ in range(interactions))

    def layers(self) -> list[tuple[Interaction, Mixing]]:
        """Each interaction with its mixing."""
        return list(zip(self.interactions, self.mixings, strict=True))  # type: ignore[arg-type]

    def forward(
        self,
        s: Tensor,
        v: Tensor | None,
        edges: Edges,
        vectors: Tensor,
        condition: Condition | None = None,
        read_out: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Scalars (N, F) and vectors (N, 3, F) after all interactions.

        Parameters
        ----------
        s, v
            Initial scalars (N, F) and vectors (N, 3, F); ``None`` for vectors that are all zero.
        edges, vectors
            The edges and their vectors ``r_ij`` (E, 3), Å.
        condition
            What the structures are conditioned on.
        read_out
            Mask (N,) and rows (R,) of the atoms whose result is wanted. Others need no last interaction and keep what
            they had before it.
        """
        geometry = self._geometry(edges, vectors, len(s))
        kept = None if v is None else v.transpose(0, 1).contiguous()  # (3, N, F)
        layers = self.layers()
        for interaction, mixing in layers if read_out is None else layers[:-1]:
            ds, dv = interaction(s, kept, condition, geometry)
            s, kept = mixing(s + ds, dv if kept is None else kept + dv, condition)
        kept = s.new_zeros(3, *s.shape) if kept is None else kept
        if read_out is not None:
            interaction, mixing = layers[-1]
            mask, rows = read_out
            ds, dv = interaction(s, kept, condition, geometry.onto(mask, len(rows)))
            theirs = None if condition is None else condition.at(rows)
            read, moved = mixing(s.index_select(0, rows) + ds, kept.index_select(1, rows) + dv, theirs)
            s, kept = s.index_copy(0, rows, read), kept.index_copy(1, rows, moved)
        return s, kept.transpose(0, 1)

    def _geometry(self, edges: Edges, vectors: Tensor, n_atoms: int) -> Geometry:
        """Of the edges within the cutoff (lists that were filled up have others); lengths are kept away from 0.

        On a GPU those beyond are kept, which count nothing: to sort them out is to wait for it.
        """
        pairs = edges.n_pairs
        distance = torch.sqrt((vectors[:pairs] ** 2).sum(dim=-1) + 1e-12)  # (P,)
        receiver, sender = edges.receiver, edges.sender
        on_device = device_ends(receiver[:pairs], sender[:pairs], n_atoms) if edges.paired else None
        inside = (distance < self.cutoff).nonzero()[:, 0] if on_device is None else distance
        if len(inside) < pairs:
            every = inside if pairs == len(receiver) else torch.cat([inside, inside + pairs])
            receiver, sender, vectors = (x.index_select(0, every) for x in (receiver, sender, vectors))
            distance = distance.index_select(0, inside)
        envelope = cosine_cutoff(distance, self.cutoff)[:, None]
        radial = self.radial(distance) * envelope
        nothing = envelope.new_zeros(len(envelope), -(radial.shape[1] + 1) % _MULTIPLE)
        basis = torch.cat([radial, envelope, nothing], dim=-1)
        unit = vectors[: len(distance)].T.contiguous() / distance
        return Geometry(receiver, sender, basis, unit, n_atoms, n_atoms, 2 if edges.paired else 1, on_device)
