"""The article's state dict, in every form it comes in, gives the same encoders; anything else is an error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import word_tokenizer
from torchvision.models import get_model
from transformers import BertConfig, BertModel

from simmim_export.errors import CheckpointError, UsageError
from simmim_export.models.simmim.checkpoint import build, load, save
from simmim_export.training.article import import_article


class Article(torch.nn.Module):
    """As the article builds it: a whole ResNet (or its children), a BERT with pooler, a projector."""

    def __init__(self, trunk: str = "resnet18", children: int | None = None) -> None:
        super().__init__()
        resnet = get_model(trunk, weights=None)
        self.visual_encoder = resnet if children is None else torch.nn.Sequential(*list(resnet.children())[:children])
        self.text_encoder = BertModel(BertConfig(
            vocab_size=60, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
            max_position_embeddings=24,
        ))  # fmt: skip
        self.projector = torch.nn.Linear(1768, 256)


@pytest.fixture(scope="module")
def article() -> Article:
    torch.manual_seed(0)
    return Article().eval()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(word_tokenizer())
    return path


def taken(path: Path, tokenizer: Path | None, heads: int | None = 4):
    return import_article(path, tokenizer=tokenizer, text_heads=heads, image_size=64)


def same_encoders(path: Path, tokenizer: Path, article: Article, trunk: torch.nn.Module) -> list[str]:
    checkpoint, notes = taken(path, tokenizer)
    save(checkpoint, path.with_name("ckpt.pt"))
    model = build(load(path.with_name("ckpt.pt")))
    pixels, ids = torch.randn(2, 3, 64, 64), torch.randint(4, 60, (2, 9))
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        expected = article.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        assert torch.allclose(model.encode_text(ids, mask)[0], expected, atol=1e-5)
        assert torch.allclose(model.image_encoder.trunk(pixels), trunk(pixels), atol=1e-5)
    return notes


def features(resnet: torch.nn.Module) -> torch.nn.Module:
    return torch.nn.Sequential(*list(resnet.children())[:-2])


@pytest.mark.parametrize("wrap", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("nested", [None, "state_dict", "model"])
def test_wrapped_and_renamed_state_dicts_are_read(
    tmp_path: Path, tokenizer: Path, article: Article, wrap: str, nested: str | None
) -> None:
    state = {wrap + key: value for key, value in article.state_dict().items()}
    state[f"{wrap}text_encoder.embeddings.position_ids"] = torch.arange(24)[None]
    torch.save(state if nested is None else {nested: state, "epoch": 3}, tmp_path / "state.pt")
    notes = " ".join(same_encoders(tmp_path / "state.pt", tokenizer, article, features(article.visual_encoder)))
    for part in ("visual_encoder is resnet18", "fc is dropped", "pooler is dropped", "1000 class logits", "untrained"):
        assert part in notes


@pytest.mark.parametrize(("trunk", "children"), [("resnet34", -1), ("resnet50", -2), ("resnext50_32x4d", -1)])
def test_children_of_a_sequential_and_other_depths(tmp_path: Path, tokenizer: Path, trunk: str, children: int) -> None:
    torch.manual_seed(0)
    made = Article(trunk, children).eval()
    torch.save(made.state_dict(), tmp_path / "state.pt")
    inner = torch.nn.Sequential(*list(made.visual_encoder.children())[:8])
    notes = same_encoders(tmp_path / "state.pt", tokenizer, made, inner)
    assert f"visual_encoder is {trunk}" in notes


def test_safetensors(tmp_path: Path, tokenizer: Path, article: Article) -> None:
    from safetensors.torch import save_file

    save_file({k: v.contiguous().clone() for k, v in article.state_dict().items()}, tmp_path / "state.safetensors")
    same_encoders(tmp_path / "state.safetensors", tokenizer, article, features(article.visual_encoder))


def test_missing_information_is_asked_for(tmp_path: Path, tokenizer: Path, article: Article) -> None:
    torch.save(article.state_dict(), tmp_path / "state.pt")
    with pytest.raises(UsageError) as caught:
        taken(tmp_path / "state.pt", tokenizer, None)
    assert caught.value.fix == "give --text-heads 1"
    with pytest.raises(UsageError, match="5 attention heads"):
        taken(tmp_path / "state.pt", tokenizer, 5)
    with pytest.raises(UsageError) as caught:
        taken(tmp_path / "state.pt", None)
    assert "--tokenizer" in str(caught.value.fix)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError) as caught:
        taken(tmp_path / "state.pt", tmp_path / "tokenizer.json")
    assert caught.value.where == str(tmp_path / "tokenizer.json")
    options = {"tokenizer": tokenizer, "text_heads": 4, "image_size": 64}
    assert import_article(tmp_path / "state.pt", max_length=24, **options)[0].config.max_length == 24
    with pytest.raises(UsageError, match=r"24 .* 1000"):
        import_article(tmp_path / "state.pt", max_length=1000, **options)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: s.update({"visual_encoder.blocks.0.norm1.weight": torch.ones(3)}), "ALBEF or BLIP"),
        (lambda s: s.update({"image_queue": torch.ones(3)}), "ALBEF or BLIP"),
        (lambda s: s.update({"head.weight": torch.ones(3)}), r"unexpected: head\.weight"),
        (lambda s: s.pop("visual_encoder.layer3.1.conv2.weight"), r"missing: layer3\.1\.conv2\.weight"),
        (lambda s: s.pop("text_encoder.encoder.layer.1.output.dense.bias"), r"missing: text_encoder\.encoder\.layer\.1"),
        (lambda s: s.pop("text_encoder.embeddings.word_embeddings.weight"), r"missing: text_encoder\.embeddings\.word"),
        (lambda s: s.update({"text_encoder.cls.bias": torch.ones(3)}), r"unexpected: text_encoder\.cls\.bias"),
        (lambda s: s["visual_encoder.bn1.weight"].fill_(float("nan")), "NaN"),
        (lambda s: s.update({"visual_encoder.bn1.weight": torch.ones(7)}), r"misshapen: bn1\.weight is \[7\]"),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("text_")], r"missing: everything under text_encoder"),
        (lambda s: s.update({"note": "hello"}), "not a state dict"),
    ],
)  # fmt: skip
def test_a_tensor_that_does_not_fit_is_named(
    tmp_path: Path, tokenizer: Path, article: Article, change, expected: str
) -> None:
    state = {key: value.clone() for key, value in article.state_dict().items()}
    change(state)
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match=expected) as caught:
        taken(tmp_path / "state.pt", tokenizer)
    assert caught.value.exit_code == 5 and caught.value.fix


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_lost_or_renamed_key_is_an_error(
    tmp_path: Path, tokenizer: Path, article: Article, data: st.DataObject
) -> None:
    state = {
        k: v for k, v in article.state_dict().items() if ".fc." not in k and "pooler" not in k and "projector" not in k
    }
    for key in data.draw(st.lists(st.sampled_from(sorted(state)), min_size=1, max_size=3, unique=True)):
        value = state.pop(key)
        if data.draw(st.booleans()):
            state[f"{key}_renamed"] = value
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match=r"missing|unexpected"):
        taken(tmp_path / "state.pt", tokenizer)


def test_code_is_never_executed(tmp_path: Path, tokenizer: Path) -> None:
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError):
        taken(tmp_path / "state.pt", tokenizer)


def test_import_writes_a_checkpoint_that_exports(run_cli, tmp_path: Path, tokenizer: Path, article: Article) -> None:
    torch.save(article.state_dict(), tmp_path / "state.pt")
    arguments = ("import", tmp_path / "state.pt", "-o", tmp_path / "ckpt.pt", "--image-size", "64", "--text-heads", "4")
    done = run_cli("train", *arguments)
    assert done.returncode == 2 and "--tokenizer" in done.stderr
    done = run_cli("train", *arguments, "--tokenizer", tokenizer)
    assert done.returncode == 0, done.stderr
    assert "resnet18" in done.stdout and "untrained" in done.stdout
    done = run_cli("export", "onnx", tmp_path / "ckpt.pt", "-o", tmp_path / "bundle")
    assert done.returncode == 0, done.stderr
    done = run_cli("export", "embed", tmp_path / "bundle", "--text", "a red circle")
    assert done.returncode == 0 and "[256]" in done.stdout
