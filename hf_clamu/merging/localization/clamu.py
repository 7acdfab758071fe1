"""ClAMU: masks are learned on the data of the cluster's tasks."""

from __future__ import annotations

from hf_clamu.merging.localization.arguments import LocalizationArguments
from hf_clamu.merging.localization.base import LocalizationMethod, MaskInputs
from hf_clamu.training import LearnedMask, derive_seed, train_mask

__all__ = ["Clamu"]


class Clamu(LocalizationMethod):
    """Trains a score per weight and keeps the weights whose score is positive.

    Source: ClAMU, Algorithm 1, lines 17-25.
    """

    name = "clamu"
    label = "ClAMU"
    summary = "learned masks"
    reads_data = "always"
    depends_on_environment = "always"

    def num_training_steps(self, arguments: LocalizationArguments) -> int:
        """Return the setting `mask_steps`."""
        return arguments.mask_steps

    def has_factors(self, arguments: LocalizationArguments) -> bool:
        """Return whether the setting `mask_factors` asks for them."""
        return arguments.mask_factors != "none"

    def mask(self, inputs: MaskInputs) -> LearnedMask:
        """Learn the mask on the training data of all members."""
        trainer, members = inputs.trainer, inputs.members
        examples = tuple(example for task_id in members for example in trainer.encoded(task_id).train)
        seed = derive_seed(inputs.run_seed, "mask", *members)
        return train_mask(trainer.workspace, inputs.merged(), examples, inputs.arguments, seed)
