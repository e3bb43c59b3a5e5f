"""The text tower of other families than BERT."""

from __future__ import annotations

import pytest
import torch

from simmim_export.models.encoders import TextEncoder

SMALL = {"vocab_size": 40, "max_position_embeddings": 18}
BERT = SMALL | {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
DISTIL = SMALL | {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "dropout": 0.5, "attention_dropout": 0.5}


@pytest.mark.parametrize(
    ("family", "config", "positions"),
    [
        ("bert", BERT | {"hidden_dropout_prob": 0.5}, 18),
        ("distilbert", DISTIL, 18),
        # Its positions begin after that of padding, which is 1.
        ("roberta", BERT | {"hidden_dropout_prob": 0.5, "pad_token_id": 1}, 16),
    ],
)
def test_no_dropout_and_as_many_tokens_as_positions(family: str, config: dict, positions: int) -> None:
    torch.manual_seed(0)
    encoder = TextEncoder({"model_type": family, **config}, 16, 8).train()
    assert encoder.positions == positions
    ids = torch.full((2, positions), 7)
    first, second = (encoder(ids, torch.ones_like(ids))[0] for _ in range(2))
    assert torch.equal(first, second)
    longer = torch.full((1, positions + 1), 7)
    with pytest.raises((IndexError, RuntimeError)):
        encoder(longer, torch.ones_like(longer))
