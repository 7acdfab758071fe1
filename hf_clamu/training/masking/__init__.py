"""Learning one binary mask per cluster.

- `learning`: the training of a mask
- `arguments`: its settings
- `step`: a step of the scores of one parameter
- `factors`: factors of alpha, learned beside the mask
"""

from hf_clamu.training.masking.arguments import MaskingArguments, scaling_share
from hf_clamu.training.masking.factors import MaskFactors
from hf_clamu.training.masking.learning import LearnedMask, train_mask
from hf_clamu.training.masking.step import MaskStep

__all__ = ["LearnedMask", "MaskFactors", "MaskStep", "MaskingArguments", "scaling_share", "train_mask"]
