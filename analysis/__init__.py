"""Tables, figures and reports from finished results; needs neither Ray nor the data."""

import sys
from pathlib import Path

# Studies and commands import this first. A `core` of someone else's in PYTHONPATH would be found
# before the one beside it, which an editable install has Python look for last.
sys.path.insert(0, str(Path(__file__).parents[1]))
