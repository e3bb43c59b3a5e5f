"""``python -m simmim_export.cli`` is ``simmim-export``."""

from simmim_export.cli import main

main()
