"""From files of rows to a recipe for them.

- `columns`: which column is which
- `images`: the shape of an image
- `findings`: what in them training refuses, how to solve it, and what it takes
- `survey`: what files hold
- `recipe_text`: the recipe that fits them, with comments
"""

from hf_clamu.proposal.columns import Columns
from hf_clamu.proposal.recipe_text import SAMPLE, is_tiny_base, recipe_text
from hf_clamu.proposal.survey import Survey, survey_files

__all__ = ["SAMPLE", "Columns", "Survey", "is_tiny_base", "recipe_text", "survey_files"]
