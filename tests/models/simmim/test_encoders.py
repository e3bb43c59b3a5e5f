"""Text encoders of every Hugging Face model type that is accepted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from simmim_export.errors import UsageError
from simmim_export.models.simmim import parts
from simmim_export.models.simmim.encoders import TextEncoder
from simmim_export.models.simmim.parts import TEXT_FAMILIES

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
def test_an_encoder_has_no_dropout_and_takes_as_many_tokens_as_it_has_positions(
    family: str, config: dict, positions: int
) -> None:
    torch.manual_seed(0)
    encoder = TextEncoder({"model_type": family, **config}, width=16, embed_dim=8).train()
    assert encoder.positions == positions
    ids = torch.full((2, positions), 7)
    first, second = (encoder(ids, torch.ones_like(ids))[0] for _ in range(2))
    assert torch.equal(first, second)
    longer = torch.full((1, positions + 1), 7)
    with pytest.raises((IndexError, RuntimeError)):
        encoder(longer, torch.ones_like(longer))


# What differs from BERT's own configuration.
FAMILY: dict[str, dict] = {name: {} for name in TEXT_FAMILIES}
FAMILY |= {name: {"pad_token_id": 1} for name in TEXT_FAMILIES if "roberta" in name or name in ("camembert", "mpnet")}
FAMILY["data2vec-text"] = FAMILY["jina_embeddings_v3"] = {"pad_token_id": 1}
FAMILY["albert"] = FAMILY["electra"] = {"embedding_size": 8}
FAMILY["rembert"] = {"input_embedding_size": 8, "output_embedding_size": 8}
FAMILY["mobilebert"] = {
    "embedding_size": 16, "true_hidden_size": 16, "intra_bottleneck_size": 16, "use_bottleneck": False
}  # fmt: skip


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_every_accepted_family_agrees_with_transformers(family: str) -> None:
    """On padded texts, and no token depends on padding."""
    from transformers import AutoConfig, AutoModel

    from simmim_export.models.simmim.attention import mask_bias

    options = DISTIL | {"dropout": 0.0, "attention_dropout": 0.0} if family == "distilbert" else BERT | FAMILY[family]
    config = AutoConfig.for_model(family, **options)
    torch.manual_seed(0)
    encoder = TextEncoder({"model_type": family, **options}, width=16, embed_dim=8).eval()
    original = AutoModel.from_config(config).eval()
    weights = encoder.encoder.state_dict()
    unused = original.load_state_dict(weights, strict=False)
    assert not unused.unexpected_keys and all("pooler" in key for key in unused.missing_keys)
    ids = torch.randint(5, 40, (3, 9))
    mask = torch.arange(9)[None] < torch.tensor([9, 6, 3])[:, None]
    ids[~mask] = config.pad_token_id or 0
    with torch.no_grad():
        segments = dict.fromkeys(encoder.segment_names, encoder.segment)
        hidden = encoder.encoder(input_ids=ids, attention_mask=mask_bias(mask.long()), **segments).last_hidden_state
        wanted = original(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        assert torch.allclose(hidden[mask], wanted[mask], atol=1e-5)
        alone, padded = encoder(ids[2:, :3], mask[2:, :3].long())[0], encoder(ids[2:], mask[2:].long())[0]
    assert torch.allclose(alone, padded[:, :3], atol=1e-5)


def test_an_unsupported_text_family_is_an_error() -> None:
    with pytest.raises(UsageError):
        TextEncoder({"model_type": "deberta-v2", **BERT}, width=16, embed_dim=8)


def test_names_of_parts_match_their_implementations() -> None:
    from torchvision.models import list_models

    from simmim_export.models.simmim.fusion import FUSIONS
    from simmim_export.models.simmim.interaction import INTERACTIONS

    assert sorted(parts.TRUNKS) == sorted(["tiny", *list_models(include=["resnet*", "wide_resnet*", "resnext*"])])
    assert {name: fusion.single for name, fusion in FUSIONS.items()} == parts.FUSIONS
    assert tuple(INTERACTIONS) == parts.INTERACTIONS


def test_the_docs_name_every_accepted_family() -> None:
    text = (Path(__file__).parents[3] / "docs/training.md").read_text(encoding="utf-8")
    accepted = text.partition("These model types are accepted:")[2].partition(".")[0]
    assert sorted(accepted.replace("\n", " ").replace(" ", "").split(",")) == sorted(TEXT_FAMILIES)
