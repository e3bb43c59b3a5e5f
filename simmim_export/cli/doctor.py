"""The command ``doctor``: what can run on this machine, and what to install for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simmim_export.console import print_json, print_section, say
from simmim_export.console.options import AsJson

EXAMPLES = ("simmim-export doctor", "simmim-export doctor --json")


def doctor(as_json: AsJson = False) -> None:
    """Show which engines run here, and how to get the others."""
    from simmim_export.engines.doctor import examine

    state = examine(thorough=True)
    if as_json:
        print_json(state)
        return
    ready = [name for name, engine in state["engines"].items() if engine["available"]]
    say(f"ready: {', '.join(ready) or 'none of the engines'}")
    if state["problems"]:
        print_section("problems", state["problems"])
    missing: dict[tuple[str | None, str | None], list[str]] = {}
    for name, engine in state["engines"].items():
        if not engine["available"]:
            missing.setdefault((engine["reason"], engine["install"]), []).append(name)
    if missing:
        advice = ((f"{', '.join(names)}: {reason}", f"  {install}") for (reason, install), names in missing.items())
        print_section("not ready, and what to do", (line for lines in advice for line in lines))
    machine = (
        f"{state['cpu']}: {state['cpus']} CPUs, {state['threads_used']} usable by this process",
        f"GPU: {_gpus(state['gpu'])}",
        f"{state['system']}, Python {state['python']}",
    )
    print_section("machine", machine)
    versions = {"simmim-export": state["simmim_export"]} | state["packages"]
    installed = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    absent = ", ".join(name for name, version in versions.items() if not version)
    print_section("packages", (installed, f"not installed: {absent or '-'}"))


def _gpus(gpu: Mapping[str, Any]) -> str:
    if not gpu["gpus"]:
        return str(gpu["reason"])
    names = ", ".join(
        f"{one['name']} (compute {one['compute']}, {one['memory'] / 2**30:.0f} GiB)" for one in gpu["gpus"]
    )
    return f"{names}; driver {gpu['driver'] or 'unknown'}, CUDA up to {gpu['cuda']}"
