"""``python -m simmim_export.benchmarks.cli`` is ``simmim-bench``."""

from simmim_export.benchmarks.cli import main

main()
