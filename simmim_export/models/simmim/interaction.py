"""H = A(Z) Z + Z W2^T: cross-modal interaction over the fused token matrix.

Every interaction has this form with its own A (see :mod:`simmim_export.models.simmim.mixing`), followed by a residual
and a feed-forward network: ``linear`` has a constant A, ``attention`` a softmax, ``graph`` a softmax over neighbors.

Shapes: b batch, s rows, D width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from simmim_export.errors import UsageError
from simmim_export.models.simmim.fusion import Fusion, Joint, Layout
from simmim_export.models.simmim.mixing import ConstantMixing, GraphMixing, Mixing, SoftmaxMixing
from simmim_export.models.simmim.parts import require_interaction

INTERACTIONS: Mapping[str, type[Mixing]] = {
    "attention": SoftmaxMixing,
    "linear": ConstantMixing,
    "graph": GraphMixing,
}


class Layer(nn.Module):
    """One pre-norm layer: A mixes tokens, W2 mixes channels, then a feed-forward network."""

    def __init__(self, width: int, mixing: Mixing) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mixing = mixing
        self.mix_channels = nn.Linear(width, width, bias=False)  # W2
        self.norm_ffn = nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def normalized(self, joint: Joint) -> Joint:
        """``joint`` with its rows normalized, as the mixing expects."""
        return joint._replace(rows=self.norm(joint.rows))

    def forward(self, joint: Joint, visible: Tensor, *, first_only: bool) -> Tensor:
        """The updated rows [b, s, D], or with ``first_only`` only the first, [b, 1, D], which still sees all others."""
        z, rows = self.normalized(joint), joint.rows
        mixed = self.mixing(z, visible, first_only=first_only)
        own = z.rows
        if first_only:
            rows, own = rows[:, :1], own[:, :1]
        rows = rows + mixed + self.mix_channels(own)
        return rows + self.ffn(self.norm_ffn(rows))


class Interaction(nn.Module):
    """Layers over Z that give the first row, fused [b, D]. The last layer computes only that row, because nothing reads
    the others."""

    def __init__(self, mixing: type[Mixing], width: int, *, heads: int, layers: int, layout: Layout) -> None:
        super().__init__()
        self.updates_image = mixing.updates_image
        self.layers = nn.ModuleList(Layer(width, mixing(width, heads, layout)) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                # Variance-preserving (LeCun et al., 1998). torch's default has a third of the variance: attention
                # starts uniform, and the image reaches the text at a tenth of its scale. At width 96, retrieval by
                # attention took three times as many steps.
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, joint: Joint, every_row: bool = False) -> Tensor:
        """fused [b, D], or with ``every_row`` all rows [b, s, D], which masked language modeling needs."""
        count = joint.rows.shape[1]
        joint = joint.whole() if self.updates_image else joint
        visible = self._mixing(0).visible(joint)
        for layer in self.layers:
            last = layer is self.layers[-1]
            joint = joint._replace(rows=layer(joint, visible, first_only=last and not every_row))
        rows = self.norm(joint.rows)
        return rows[:, :count] if every_row else rows[:, 0]

    def attend(self, joint: Joint) -> Tensor:
        """Where each row looks in the image: the mean of A over layers and heads, [b, s, n] in [0, 1].

        Raise :class:`UsageError` for an interaction other than ``attention``: its A does not depend on the input in
        this way.
        """
        maps: list[Tensor] = []
        visible = self._mixing(0).visible(joint)
        for layer in self.layers:
            assert isinstance(layer, Layer)
            if not isinstance(layer.mixing, SoftmaxMixing):
                raise UsageError(
                    "only the interaction attention has an attention map",
                    fix="train with --interaction attention, or leave out --attention",
                )
            maps.append(layer.mixing.weights(layer.normalized(joint), visible, first_only=False))
            joint = joint._replace(rows=layer(joint, visible, first_only=False))
        return torch.stack(maps).mean(dim=0)

    def _mixing(self, index: int) -> Mixing:
        layer = self.layers[index]
        assert isinstance(layer, Layer)
        return layer.mixing


def interaction(name: str, fused: Fusion, *, layout: Layout, width: int, heads: int, layers: int) -> Interaction:
    """The interaction called ``name`` for the output of the fusion ``fused``. Raise as :func:`require_interaction`."""
    require_interaction(name, fused.single)
    return Interaction(INTERACTIONS[name], width, heads=heads, layers=layers, layout=layout)
