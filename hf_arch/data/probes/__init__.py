"""Synthetic probes: small generated tasks that ask one question of a token mixer each.

A probe is a function `generate(rng, examples, **options) -> ProbeData` with its settings, in `PROBES` by name. A plugin
file adds one with `PROBES.register("name")(Probe("name", ...))`.
"""

from __future__ import annotations

from hf_arch.core.registry import PROBES
from hf_arch.data.probes.copying import SELECTIVE_COPYING
from hf_arch.data.probes.dependencies import BREVO
from hf_arch.data.probes.grammar import LANO
from hf_arch.data.probes.induction import INDUCTION
from hf_arch.data.probes.mad import COMPRESSION, FUZZY_RECALL, IN_CONTEXT_RECALL, MEMORIZATION, NOISY_RECALL
from hf_arch.data.probes.mqar import MQAR
from hf_arch.data.probes.mqar_variants import COMPOSITIONAL_MQAR, FORGETTING_MQAR
from hf_arch.data.probes.physics import DEPO, MANO
from hf_arch.data.probes.probe import IGNORE, Probe, ProbeData, ProbeSetting
from hf_arch.data.probes.sources import ProbeSource
from hf_arch.data.probes.state_tracking import PARITY, PARITY_LENGTH, S3, S5, S5_LENGTH

MAD = (IN_CONTEXT_RECALL, FUZZY_RECALL, NOISY_RECALL, SELECTIVE_COPYING, COMPRESSION, MEMORIZATION)
"""The six tasks of MAD; its score is the mean over them."""

for _probe in (
    *(MQAR, COMPOSITIONAL_MQAR, FORGETTING_MQAR, *MAD, INDUCTION),
    *(PARITY, S3, S5, PARITY_LENGTH, S5_LENGTH),
    *(DEPO, BREVO, MANO, LANO),
):
    PROBES.register(_probe.name)(_probe)

__all__ = ["IGNORE", "MAD", "PROBES", "Probe", "ProbeData", "ProbeSetting", "ProbeSource"]
