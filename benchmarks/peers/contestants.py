"""Who takes part: ours on each engine, and each peer with the recipe that makes its file.

A peer is run as its own documentation says, with the number of threads that ours have and with nothing else tuned.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

from simmim_export.engines.failures import missing_package
from simmim_export.errors import EngineUnavailable, SimmimError, UsageError
from simmim_export.spec import Precision

TORCH, COMPILED, ORT, OPENVINO = "torch", "torch-compile", "ort", "openvino"
# The recipe of a file that torch.onnx.export writes with its defaults.
PLAIN = "plain"
_EXPORTERS = "transformers.exporters"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One row of the table. ``recipe`` says who made the file that ``engine`` runs: "" is this project (or nobody, for PyTorch).

    ``packages`` are what it needs beyond PyTorch and transformers.
    """

    engine: str
    precision: str = str(Precision.FP32)
    recipe: str = ""
    packages: tuple[str, ...] = ()

    @property
    def is_ours(self) -> bool:
        """Whether it runs a graph of the bundle on one of our engines."""
        return not self.recipe and self.engine not in (TORCH, COMPILED)

    @property
    def key(self) -> tuple[str, str, str]:
        """What its rows have: engine, precision, recipe."""
        return (self.engine, self.precision, self.recipe)

    @property
    def name(self) -> str:
        """What a user calls it: ``ort:int8``, or ``ort:int8:nncf`` with its recipe, without spaces."""
        return ":".join(filter(None, (self.engine, self.precision, self.recipe.replace(" ", "-"))))

    def lacking(self) -> str | None:
        """Why it cannot run here, or None. Imports nothing large."""
        if self.is_ours:
            try:
                _require_engine(self)
            except SimmimError as error:
                return error.what
            return None
        reasons = [missing_package(package) for package in ("torch", "transformers", *self.packages)]
        if self.recipe.startswith(_EXPORTERS) and not any(reasons):
            reasons.append(_without_exporters())
        return next((reason for reason in reasons if reason), None)


def _require_engine(peer: Peer) -> None:
    """Raise :class:`SimmimError` unless our engine runs here at the peer's precision."""
    from simmim_export.benchmarks.contestants import Contestant

    Contestant(peer.engine, peer.precision).require()


def _without_exporters() -> str | None:
    """Why this transformers has no exporters; None if it has them."""
    try:
        import_module(_EXPORTERS)
    except ImportError:
        return f"this transformers has no module {_EXPORTERS}"
    return None


_RUNTIME, _OV, _NNCF = ("onnx", "onnxruntime"), ("openvino",), ("nncf", "onnx", "onnxruntime")
_INT8, _BF16 = str(Precision.INT8), str(Precision.BF16)
OURS = (
    Peer(engine=ORT),
    Peer(engine=ORT, precision=_INT8),
    Peer(engine=OPENVINO),
    Peer(engine=OPENVINO, precision=_BF16),
    Peer(engine=OPENVINO, precision=_INT8),
)
PEERS = (
    Peer(engine=TORCH),
    Peer(engine=COMPILED),
    Peer(engine=TORCH, precision=_BF16),
    Peer(engine=ORT, recipe=PLAIN, packages=_RUNTIME),
    Peer(engine=OPENVINO, recipe=PLAIN, packages=("onnx", *_OV)),
    Peer(engine=OPENVINO, precision=_BF16, recipe=PLAIN, packages=("onnx", *_OV)),
    Peer(engine=ORT, precision=_INT8, recipe="onnxruntime static", packages=_RUNTIME),
    Peer(engine=ORT, precision=_INT8, recipe="onnxruntime dynamic", packages=_RUNTIME),
    Peer(engine=OPENVINO, precision=_INT8, recipe="nncf", packages=(*_NNCF, *_OV)),
    Peer(engine=ORT, recipe=_EXPORTERS, packages=_RUNTIME),
    Peer(engine=ORT, precision=_INT8, recipe=f"{_EXPORTERS} static", packages=_RUNTIME),
    Peer(engine=ORT, precision=_INT8, recipe=f"{_EXPORTERS} dynamic", packages=_RUNTIME),
    Peer(engine=ORT, precision=_INT8, recipe=f"{_EXPORTERS} nncf", packages=_NNCF),
    Peer(engine=OPENVINO, recipe=_EXPORTERS, packages=_OV),
    Peer(engine=OPENVINO, precision=_INT8, recipe=f"{_EXPORTERS} nncf", packages=("nncf", *_OV)),
)
# What all others are compared with, in time and in accuracy.
REFERENCE = PEERS[0]


def chosen(names: Sequence[str] | None) -> tuple[Peer, ...]:
    """The reference (PyTorch), ours, and the peers called ``names`` (None: all peers; only ``none``: no other peer).

    Raise :class:`UsageError` for a name that no peer has, and :class:`EngineUnavailable` for a peer that was named and cannot run
    here. One that was not named gets a row with the reason.
    """
    if names is None:
        return (*PEERS, *OURS)
    known: Mapping[str, Peer] = {peer.name: peer for peer in PEERS}
    named = [] if list(names) == ["none"] else list(dict.fromkeys(names))
    for name in named:
        if name not in known:
            raise UsageError(f"unknown peer {name!r}", fix=f"choose among {', '.join(known)}, or none")
        if reason := known[name].lacking():
            raise EngineUnavailable(f"peer {name!r}: {reason}", fix="pip install 'simmim-export[peers]'")
    return _with_reference(known[name] for name in named)


def _with_reference(peers: Iterable[Peer]) -> tuple[Peer, ...]:
    return tuple(dict.fromkeys((REFERENCE, *peers, *OURS)))
