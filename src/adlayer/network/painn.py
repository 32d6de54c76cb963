"""PaiNN: polarizable atom interaction neural network (Schütt, Unke & Gastegger, ICML 2021), conditioned.

Atom ``i`` carries scalars ``s_i`` (F) and vectors ``v_i`` (3, F). With edges ``r_ij = x_j − x_i`` of length ``d``:

- message (Eqs. 7 and 8): ``x_j = φ(s_j) ∘ W(d)``, split in three;
  ``Δs_i = Σ_j x¹_j``, ``Δv_i = Σ_j (v_j ∘ x²_j + r̂_ij x³_j)``, where ``W(d) = (A rbf(d) + b) f_cut(d)``;
- update (Eqs. 9 and 10): ``a = ψ(s_i, ‖V v_i‖)``, split in three;
  ``Δs_i = a¹ + a² ⟨U v_i, V v_i⟩``, ``Δv_i = a³ ∘ U v_i``.

Ours adds, for the denoiser, a condition vector ``c`` of each structure (noise level and the like) to the scalars that
enter every message and update, and lets the edges of the last message end on the atoms that are read out only.
Without conditions it is the published network.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from adlayer.network.neighbours import Edges


class RadialBasis(nn.Module):
    """``n`` Gaussians between 0 and the cutoff (Å), one spacing wide: (E,) → (E, n)."""

    centres: Tensor

    def __init__(self, n: int, cutoff: float) -> None:
        super().__init__()
        self.register_buffer("centres", torch.linspace(0.0, cutoff, n), persistent=False)
        self.coefficient = -0.5 / (cutoff / (n - 1)) ** 2

    def forward(self, distance: Tensor) -> Tensor:
        return torch.exp(self.coefficient * (distance[:, None] - self.centres) ** 2)


def cosine_cutoff(distance: Tensor, cutoff: float) -> Tensor:
    """``½ (1 + cos(π d / r_c))`` inside the cutoff, 0 outside (Behler & Parrinello 2007)."""
    return 0.5 * (1.0 + torch.cos(math.pi / cutoff * distance)) * (distance < cutoff)


class Interaction(nn.Module):
    """The message of PaiNN, Eqs. 7 and 8."""

    def __init__(self, features: int, n_radial: int, n_condition: int) -> None:
        super().__init__()
        self.context = nn.Sequential(nn.Linear(features, features), nn.SiLU(), nn.Linear(features, 3 * features))
        self.filter = nn.Linear(n_radial, 3 * features)
        self.condition = nn.Linear(n_condition, features) if n_condition else None

    def forward(
        self,
        s: Tensor,
        v: Tensor,
        condition: Tensor | None,
        edges: Edges,
        radial: Tensor,
        envelope: Tensor,
        unit: Tensor,
    ) -> tuple[Tensor, Tensor]:
        if self.condition is not None:
            s_in = s + self.condition(condition)
        else:
            s_in = s
        filters = self.filter(radial) * envelope[:, None]  # (E, 3F)
        scalar, gate, direction = (self.context(s_in)[edges.sender] * filters).chunk(3, dim=-1)  # (E, F) each
        moved = v[edges.sender] * gate[:, None] + unit[:, :, None] * direction[:, None]  # (E, 3, F)
        return s.index_add(0, edges.receiver, scalar), v.index_add(0, edges.receiver, moved)


class Mixing(nn.Module):
    """The update of PaiNN, Eqs. 9 and 10."""

    def __init__(self, features: int, n_condition: int, epsilon: float = 1e-8) -> None:
        super().__init__()
        self.channels = nn.Linear(features, 2 * features, bias=False)
        self.context = nn.Sequential(nn.Linear(2 * features, features), nn.SiLU(), nn.Linear(features, 3 * features))
        self.condition = nn.Linear(n_condition, 2 * features) if n_condition else None
        self.epsilon = epsilon

    def forward(self, s: Tensor, v: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        v_norm, v_mix = self.channels(v).chunk(2, dim=-1)  # (N, 3, F) each
        norm = torch.sqrt((v_norm**2).sum(dim=1) + self.epsilon)  # (N, F)
        joined = torch.cat([s, norm], dim=-1)
        if self.condition is not None:
            joined = joined + self.condition(condition)
        scalar, gate, product = self.context(joined).chunk(3, dim=-1)  # (N, F) each
        return s + scalar + product * (v_norm * v_mix).sum(dim=1), v + gate[:, None] * v_mix


class PaiNN(nn.Module):
    """Interactions and mixings, one after the other.

    Parameters
    ----------
    features, interactions, n_radial, cutoff
        Size of the network; cutoff in Å. Published: 64, 4, 30, 6 Å.
    n_condition
        Length of the condition vector of each atom; 0 for none.
    """

    def __init__(self, features: int, interactions: int, n_radial: int, cutoff: float, n_condition: int = 0) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.radial = RadialBasis(n_radial, cutoff)
        self.interactions = nn.ModuleList(Interaction(features, n_radial, n_condition) for _ in range(interactions))
        self.mixings = nn.ModuleList(Mixing(features, n_condition) for _ in range(interactions))

    def forward(
        self,
        s: Tensor,
        v: Tensor,
        edges: Edges,
        vectors: Tensor,
        condition: Tensor | None = None,
        read_out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Scalars (N, F) and vectors (N, 3, F) after all interactions.

        Parameters
        ----------
        s, v
            Initial scalars (N, F) and vectors (N, 3, F).
        edges, vectors
            The edges and their vectors ``r_ij`` (E, 3), Å.
        condition
            Of each atom (N, C).
        read_out
            Mask (N,): atoms whose result is wanted. Others need no last interaction and keep what they had before it.
        """
        vectors, distance, edges = self._within(vectors, edges)
        radial, envelope = self.radial(distance), cosine_cutoff(distance, self.cutoff)
        unit = vectors / distance[:, None]
        last = len(self.interactions) - 1
        for k, (interaction, mixing) in enumerate(zip(self.interactions, self.mixings, strict=True)):
            if k == last and read_out is not None:
                wanted = read_out[edges.receiver]
                edges = edges.keep(wanted)
                radial, envelope, unit = radial[wanted], envelope[wanted], unit[wanted]
            s, v = interaction(s, v, condition, edges, radial, envelope, unit)
            s, v = mixing(s, v, condition)
        return s, v

    def _within(self, vectors: Tensor, edges: Edges) -> tuple[Tensor, Tensor, Edges]:
        """Drop edges beyond the cutoff (a list made with a skin has them); keep lengths away from 0."""
        distance = torch.sqrt((vectors**2).sum(dim=-1) + 1e-12)  # (E,)
        inside = distance < self.cutoff
        if bool(inside.all()):
            return vectors, distance, edges
        return vectors[inside], distance[inside], edges.keep(inside)
