"""Stands in for a module that the sdist leaves out: what ModelTesterMixin needs of the generation tests.

What `generate()` has to do is tested in `tests/suite/` over every architecture.
"""

import torch


class GenerationTesterMixin:
    def prepare_config_and_inputs_for_generate(self, batch_size=2):
        """Config and inputs of `batch_size` rows, attended everywhere."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        inputs = {name: value[:batch_size] for name, value in inputs.items()}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        return config, inputs
