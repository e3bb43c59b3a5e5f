"""The text encoders of transformers that can be exported, and how many tokens they take. Importing it does not import PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

# Hugging Face's model_type of each text encoder that gives the same results here as in transformers, padded or not.
# Some others would silently give different results: DeBERTa adds terms to its attention, ConvBERT's convolutions see
# padding.
TEXT_FAMILIES: tuple[str, ...] = ("albert", "bert", "camembert", "data2vec-text", "distilbert", "electra", "ernie")
TEXT_FAMILIES += ("jina_embeddings_v3", "megatron-bert", "mobilebert", "mpnet", "nomic_bert", "rembert", "roberta")
TEXT_FAMILIES += ("roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl")


def text_positions(encoder: nn.Module) -> int | None:
    """The most tokens that a Hugging Face encoder has positions for; None if positions are computed.

    RoBERTa's family numbers positions from after the padding index, so some rows of the table are never used.
    """
    from torch import nn

    for name, table in encoder.named_modules():
        if name.endswith("position_embeddings") and isinstance(table, nn.Embedding):
            return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
    return None
