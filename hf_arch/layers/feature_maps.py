"""Feature maps of linear attention, by name: how exp(q . k) is replaced by phi(q) . phi(k).

`elementwise_product` (two linear maps multiplied), `hedgehog` (Zhang et al. 2024, arXiv 2402.04347), `t2r` (Kasai et
al. 2021, arXiv 2103.13076), `dpfp` (Schlag et al. 2021, arXiv 2102.11174), `taylor` (Arora et al. 2024, arXiv
2402.18668), `elu` (Katharopoulos et al. 2020, arXiv 2006.16236), `relu`, `silu`, `identity`. Learned maps are shared by
the heads of a layer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ..core.registry import Registry
from ..ops.precision import state_dtype, without_autocast

FEATURE_MAPS: Registry[type] = Registry(
    "feature_map", "Feature maps: subclasses of `FeatureMap`, built as `map(dim)`.", listing=None
)


class FeatureMap(nn.Module):
    """[..., dim] -> [..., feature_dim]."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = self.feature_dim = dim

    def init_weights(self) -> None:
        """As Mixer.init_weights; the mixer that holds the map calls it."""


@FEATURE_MAPS.register("identity")
class Identity(FeatureMap):
    """x."""

    def forward(self, x: Tensor) -> Tensor:
        return x


@FEATURE_MAPS.register("relu")
class Rectifier(FeatureMap):
    """max(x, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


@FEATURE_MAPS.register("silu")
class Swish(FeatureMap):
    """x sigmoid(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


@FEATURE_MAPS.register("elu")
class ShiftedELU(FeatureMap):
    """elu(x) + 1."""

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(x) + 1


@FEATURE_MAPS.register("t2r")
class TransformerToRNN(FeatureMap):
    """relu(W x)."""

    def __init__(self, dim: int):
        super().__init__(dim)
        self.layer = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layer(x))


@FEATURE_MAPS.register("elementwise_product")
class ElementwiseProduct(FeatureMap):
    """(W_1 x + b_1) * (W_2 x + b_2)."""

    def __init__(self, dim: int):
        super().__init__(dim)
        self.layer1 = nn.Linear(dim, dim)
        self.layer2 = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer1(x) * self.layer2(x)


@FEATURE_MAPS.register("hedgehog")
class Hedgehog(FeatureMap):
    """softmax([2 y, -2 y]) of y = W x + b, with W = I at first."""

    def __init__(self, dim: int):
        super().__init__(dim)
        self.feature_dim = 2 * dim
        self.layer = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        y = 2 * self.layer(x)
        return torch.cat((y, -y), -1).softmax(-1)

    def init_weights(self) -> None:
        init.eye_(self.layer.weight)


@FEATURE_MAPS.register("dpfp")
class DeterministicProjection(FeatureMap):
    """[r * roll(r, 1), ..., r * roll(r, nu)] of r = relu([x, -x]), nu = 4."""

    def __init__(self, dim: int, nu: int = 4):
        super().__init__(dim)
        self.nu, self.feature_dim = nu, 2 * nu * dim

    def forward(self, x: Tensor) -> Tensor:
        r = F.relu(torch.cat((x, -x), -1))
        return torch.cat([r * r.roll(shift, -1) for shift in range(1, self.nu + 1)], -1)


@FEATURE_MAPS.register("taylor")
class Taylor(FeatureMap):
    """[1, x / d^(1/4), x_i^2 / sqrt(2 d), x_i x_j / sqrt(d) (i < j)], fp32: phi(q) . phi(k) = 1 + s + s^2 / 2 with
    s = q . k / sqrt(d), the second-order expansion of exp(s)."""

    def __init__(self, dim: int):
        super().__init__(dim)
        self.feature_dim = 1 + dim + dim * (dim + 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(state_dtype(x)) / self.dim**0.25
        # Products with rows of the identity: as fast as indexing and, unlike it, in the backward pass too.
        eye = torch.eye(self.dim, dtype=x.dtype, device=x.device)
        first, second = torch.triu_indices(self.dim, self.dim, device=x.device)
        once = torch.where(first == second, math.sqrt(0.5), 1.0)
        with without_autocast(x):
            pairs = (x @ eye[first].T) * (x @ (eye[second] * once[:, None]).T)
        return torch.cat((torch.ones_like(x[..., :1]), x, pairs), -1)
