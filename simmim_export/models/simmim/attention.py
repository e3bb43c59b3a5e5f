"""One attention for training, evaluation and export.

Shapes: b batch, h heads, q queries, k keys, d channels per head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simmim_export.system.telemetry import without_telemetry

with without_telemetry("transformers"):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# Added to the scores of padded keys. exp(-1e4) is exactly 0 in FP32, and -1e4 fits FP16, where the usual -3.4e38
# becomes -inf and turns a row of them into NaN.
MASKED = -1.0e4

NAME = "simmim"


def mask_bias(mask: Tensor) -> Tensor:
    """Turn a mask ([b, k], 1 for a real key, 0 for padding) into a bias float32 [b, 1, 1, k] of 0 and ``MASKED``."""
    return (1.0 - mask.to(torch.float32))[:, None, None, :] * MASKED


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float | None = None) -> Tensor:
    """softmax(q k^T * scale + bias) v, with q [b, h, q, d], k and v [b, h, k, d], and a bias that broadcasts to [b, h,
    q, k].

    For export the formula is written out, with q and k each times sqrt(scale). This gives MatMul -> Add -> Softmax ->
    MatMul, which TensorRT, ONNX Runtime and OpenVINO fuse; for ``scaled_dot_product_attention`` the exporter would add
    IsNaN and Where. Source: Vaswani et al., 2017, equation 1.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if not torch.compiler.is_exporting():
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
    root = scale**0.5
    scores = (query * root) @ (key * root).transpose(-1, -2)
    if bias is not None:
        scores = scores + bias
    return scores.softmax(dim=-1) @ value


def _for_transformers(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """:func:`attention` with the signature that transformers calls; returns [b, q, h, d]. Dropout is not applied."""
    return attention(query, key, value, attention_mask, scaling).transpose(1, 2).contiguous(), None


# A Hugging Face encoder whose config says _attn_implementation = NAME runs the function above.
ALL_ATTENTION_FUNCTIONS.register(NAME, _for_transformers)
