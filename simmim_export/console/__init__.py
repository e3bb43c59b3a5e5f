"""What the three programs share: help, options, exit codes, JSON, tables, progress bars and warnings."""

from simmim_export.console.app import Version, new_app
from simmim_export.console.exit_codes import run_app
from simmim_export.console.output import (
    Row,
    check_output,
    print_json,
    print_section,
    print_table,
    stacked,
    stdout_console,
)
from simmim_export.console.progress import progress_bar
from simmim_export.system.printing import printable, say

__all__ = [
    "Row",
    "Version",
    "check_output",
    "new_app",
    "print_json",
    "print_section",
    "print_table",
    "printable",
    "progress_bar",
    "run_app",
    "say",
    "stacked",
    "stdout_console",
]
