"""The whole story in three minutes, without network: `clamu demo`.

Handwritten digits of scikit-learn; a small ViT pretrained on a public half; 48 data owners with two of the ten digits
each, who call the lower one "few" and the higher one "many".

running      the demo from the first row to the last figure
preparation  rows, base model and recipes
ways         the ways to serve owners and forget them that the demo compares
table        what was measured as a table, for terminals and pages
figures      drawings of the results
"""

from hf_clamu.demo.preparation import prepare
from hf_clamu.demo.running import FORGOTTEN, run_demo
from hf_clamu.demo.table import markdown_table, table_rows

__all__ = ["FORGOTTEN", "markdown_table", "prepare", "run_demo", "table_rows"]
