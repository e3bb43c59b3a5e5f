"""One row of a benchmark: what an engine did with one job, with every sample. It is also how a row is written to a file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from msgspec import Meta

# What a run can measure. "peers" rows come from simmim-bench peers, all others from simmim-bench --suite NAME.
Suite = Literal["latency", "ladder", "throughput", "reuse", "photos", "growth", "soak", "peers"]
# From a nanosecond to thirty years, so that no ratio of two overflows.
Seconds = Annotated[float, Meta(ge=1e-9, le=1e9)]
Round = Annotated[tuple[Seconds, ...], Meta(min_length=1)]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
# A size of the inputs (batch, sequence, image_size, frames, questions, streams, megapixels), or a word (stage).
Param = Annotated[float, Meta(ge=0, le=sys.float_info.max)] | Annotated[str, Meta(max_length=100)] | Count


@dataclass(frozen=True, kw_only=True)
class Failed:
    """Why an engine has no figure, or only those of the rounds before it failed: the class of the error, and its message."""

    error: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Floor:
    """The least time that this host needs for one run: ``seconds``, the floating-point operations and bytes that it follows
    from, and which of the two decides."""

    seconds: Seconds
    flops: Annotated[float, Meta(ge=0, le=sys.float_info.max)]
    bytes: Annotated[float, Meta(ge=0, le=sys.float_info.max)]
    bound: Literal["compute", "memory"]


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """What one engine did with one job: a ``target`` of a ``suite`` with its ``params``.

    ``rounds``: every latency in seconds, round by round, from host arrays (or files and texts) to host arrays. Only a row that
    ``failed`` may have no round. One sample covers ``items`` images, texts or questions. ``gpu_rounds``: the same by the GPU's
    own events; empty if the engine has none. ``inputs``: a digest of the inputs. ``recipe``: how the graph was quantized, if not
    by this project. ``parity``: passed, scaled_error, cosine. ``accuracy``: what a peer's row has instead (cosine_mean, top1,
    ...). ``bytes``: the files of the graphs on disk. ``memory``: resident bytes by seconds since the start of a soak.
    ``code``: the digest of the code that the figure depends on.
    """

    target: str
    engine: str
    precision: str
    batch: int
    inputs: str
    rounds: tuple[Round, ...]
    suite: Suite = "latency"
    params: Mapping[str, Param] = field(default_factory=dict)
    recipe: str = ""
    items: Annotated[int, Meta(ge=1, le=10**9)] = 1
    parity: dict[str, Any] = field(default_factory=dict)
    accuracy: dict[str, Any] | None = None
    gpu_rounds: tuple[Round, ...] = ()
    floor: Floor | None = None
    failed: Failed | None = None
    bytes: Count | None = None
    memory: tuple[tuple[Annotated[float, Meta(ge=0)], Count], ...] = ()
    code: str = ""

    def __post_init__(self) -> None:
        if not self.rounds and self.failed is None:
            raise ValueError("a row needs at least one round, or the reason why it failed")

    @property
    def samples(self) -> list[float]:
        """All latencies in seconds; empty if the engine failed before the end of the first round."""
        return [sample for row in self.rounds for sample in row]

    @property
    def gpu_samples(self) -> list[float]:
        """All latencies in seconds by the GPU's own events; empty if the engine has none."""
        return [sample for row in self.gpu_rounds for sample in row]

    @property
    def job(self) -> tuple[Any, ...]:
        """What was run: rows of several engines with the same job can be compared."""
        return (self.suite, self.target, tuple(sorted(self.params.items())))

    @property
    def key(self) -> tuple[Any, ...]:
        """What a row is about: rows of two runs with the same key can be compared."""
        return (*self.job, self.engine, self.precision, self.recipe)
