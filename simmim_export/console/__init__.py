"""What all commands share: errors to exit codes, options, JSON, tables, progress."""

from simmim_export.console.commands import Version as Version
from simmim_export.console.commands import check_output as check_output
from simmim_export.console.commands import new_app as new_app
from simmim_export.console.commands import print_json as print_json
from simmim_export.console.commands import progress_bar as progress_bar
from simmim_export.console.commands import run_app as run_app
from simmim_export.console.commands import stacked as stacked
from simmim_export.console.commands import stdout_console as stdout_console
from simmim_export.system.printing import printable as printable
from simmim_export.system.printing import say as say
