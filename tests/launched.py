"""torchrun's own launcher, its processes forked instead of started anew: `launched PROCESSES MODULE [ARGUMENT...]`.

Knows processes. Must not know what a module does. Run by the zygote, which has imported everything that takes time: a
launch costs seconds less for each process. The command torchrun itself has tests of its own.
"""

from __future__ import annotations

import runpy
import sys


def _become(module: str, arguments: list[str]) -> None:
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def main(processes: int, module: str, arguments: list[str]) -> None:
    """Run ``module`` in so many processes, which find each other by the variables that torchrun sets."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="fork",
    )
    elastic_launch(config, _become)(module, arguments)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
