"""Orthogonal initial values (Saxe et al. 2014, arXiv 1312.6120) for the matrices of the layers."""

from torch import nn

from hf_arch.core.options import Options, options
from hf_arch.core.registry import INITS
from hf_arch.models.init_policy import InitPolicy


@options
class OrthogonalOptions(Options):
    """`gain`: the singular values. `embedding_std`: of embedding and head; None leaves them to the general rule."""

    gain: float = 1.0
    embedding_std: float | None = None


@INITS.register("idea_orthogonal")
class Orthogonal(InitPolicy):
    Options = OrthogonalOptions
    label = "orthogonal"

    def init_parameter(self, parameter, role, name):
        if role == "matrix":
            nn.init.orthogonal_(parameter, self.options.gain)
        elif role in ("embedding", "head") and self.options.embedding_std is not None:
            nn.init.normal_(parameter, std=self.options.embedding_std)
