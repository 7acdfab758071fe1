"""What a build will need, and which preset fits, before anything is trained.

- `estimate`: weights, memory, disk and a rough time of a build and of a request
- `models`: the model that would train, without memory for its weights
- `recommendation`: the rule that chooses a preset, and its reasons
- `units`: sizes and times as people read and write them
"""

from hf_clamu.planning.estimate import BuildEstimate, PresetEstimates, estimate_build, estimate_presets
from hf_clamu.planning.recommendation import Recommendation, Wishes, recommend
from hf_clamu.planning.units import duration_text, size_text
from hf_clamu.storage.sizes import parse_size

__all__ = [
    "BuildEstimate",
    "PresetEstimates",
    "Recommendation",
    "Wishes",
    "duration_text",
    "estimate_build",
    "estimate_presets",
    "parse_size",
    "recommend",
    "size_text",
]
