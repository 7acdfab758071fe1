"""`python -m hf_clamu.cli`, which is how `accelerate launch -m` starts it."""

import sys

from hf_clamu.cli import main

sys.exit(main())
