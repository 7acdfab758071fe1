"""From a file of rows to a recipe for it.

- `survey`: what a file holds, and what in it will give trouble
- `recipe_text`: the recipe that fits it, with comments
"""

from hf_clamu.proposal.recipe_text import SAMPLE, recipe_text
from hf_clamu.proposal.survey import Columns, Survey, survey_file

__all__ = ["SAMPLE", "Columns", "Survey", "recipe_text", "survey_file"]
