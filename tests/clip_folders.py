"""Small CLIP models with random weights, in the folders that transformers and open_clip write, and their outputs in PyTorch."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import models, trainers
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, MetaClip2Config, MetaClip2Model
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from simmim_export.export.bundled_samples import sample_texts

REPOSITORY = Path(__file__).parents[1]
SIDE, PATCH, WIDTH, LAYERS, CHANNELS, LONGEST = 32, 8, 32, 1, 24, 77
START, END, MERGES = "<|startoftext|>", "<|endoftext|>", 600


@functools.cache
def corpus() -> list[str]:
    """Lines of text from the documentation, and the bundled captions."""
    pages = [page.read_text(encoding="utf-8") for page in sorted((REPOSITORY / "docs").glob("*.md"))]
    return [line for line in "\n".join(pages).splitlines() if line.strip()] + list(sample_texts())


@functools.cache
def clip_tokenizer() -> CLIPTokenizer:
    """A tokenizer of CLIP's kind: its bytes, the same at the end of a word, merges, and two special tokens."""
    made = CLIPTokenizer({START: 0, END: 1}, []).backend_tokenizer
    made.model = models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix="")
    trainer = trainers.BpeTrainer(vocab_size=512 + MERGES, end_of_word_suffix="</w>", show_progress=False)
    made.train_from_iterator(corpus(), trainer)
    learned = json.loads(made.to_str())["model"]["merges"]
    alphabet = sorted({char for char in map(chr, range(33, 512)) if len(char.encode()) < 3})[:256]
    vocab = [*alphabet, *(char + "</w>" for char in alphabet)]
    pairs = [tuple(pair) for pair in learned if all(part in alphabet for part in re.sub("</w>", "", "".join(pair)))]
    vocab += dict.fromkeys("".join(pair) for pair in pairs)
    return CLIPTokenizer({token: index for index, token in enumerate([*vocab, START, END])}, pairs)


def tower(activation: str) -> dict[str, Any]:
    return {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "hidden_act": activation,
    }


def config(kind: type = CLIPConfig, *, vocabulary: int, eos: int, activation: str = "quick_gelu") -> Any:
    text = {"vocab_size": vocabulary, "eos_token_id": eos, "max_position_embeddings": LONGEST}
    vision = {"image_size": SIDE, "patch_size": PATCH}
    # With the small standard deviations of training, a layer hardly changes anything.
    return kind(
        projection_dim=CHANNELS,
        initializer_factor=4.0,
        text_config=tower(activation) | text | {"initializer_factor": 4.0},
        vision_config=tower(activation) | vision | {"initializer_factor": 4.0},
    )


def save_clip(folder: Path, *, eos: int | None = 2, activation: str = "quick_gelu", shards: bool = False) -> Path:
    """A CLIP as transformers saves it; with ``eos`` None its configuration has the tokenizer's own end token."""
    torch.manual_seed(3)
    tokenizer = clip_tokenizer()
    own = tokenizer.eos_token_id if eos is None else eos
    model = CLIPModel(config(vocabulary=len(tokenizer), eos=own, activation=activation))
    model.save_pretrained(folder, max_shard_size="100KB" if shards else "5GB")
    tokenizer.model_max_length = LONGEST
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE).save_pretrained(folder)
    return folder


def save_metaclip(folder: Path, tokenizer_json: str) -> Path:
    """A MetaCLIP 2, whose end token has the id 2, with the tokenizer of XLM-RoBERTa's kind ``tokenizer_json``."""
    torch.manual_seed(4)
    MetaClip2Model(config(MetaClip2Config, vocabulary=64, eos=2)).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE).save_pretrained(folder)
    return folder


# -- open_clip -------------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A block of open_clip's Transformer."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(WIDTH, 2 * WIDTH))
        self.mlp.add_module("gelu", activation)
        self.mlp.add_module("c_proj", nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Blocks(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(activation) for _ in range(LAYERS))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Visual(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.positional_embedding = nn.Parameter(torch.randn((SIDE // PATCH) ** 2 + 1, WIDTH))
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.transformer = Blocks(activation)
        self.proj = nn.Parameter(torch.randn(WIDTH, CHANNELS))

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1(images).flatten(2).permute(0, 2, 1)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class OpenCLIPModel(nn.Module):
    """CLIP with the names of open_clip's parameters, computed as open_clip computes it."""

    def __init__(self, vocabulary: int, *, quick_gelu: bool) -> None:
        super().__init__()
        activation = QuickGELU() if quick_gelu else nn.GELU()
        self.visual, self.transformer = Visual(activation), Blocks(activation)
        self.token_embedding, self.ln_final = nn.Embedding(vocabulary, WIDTH), nn.LayerNorm(WIDTH)
        self.positional_embedding = nn.Parameter(torch.randn(LONGEST, WIDTH))
        self.text_projection = nn.Parameter(torch.randn(WIDTH, CHANNELS))
        self.logit_scale = nn.Parameter(torch.tensor(3.5))
        for name, parameter in self.named_parameters():  # zeros and ones would hide an exchange
            if name.endswith("bias") or "ln_" in name:
                nn.init.normal_(parameter, float(name.endswith("weight")), 0.3)

    def encode_image(self, images: Tensor) -> Tensor:
        return normalize(self.visual(images), dim=-1)

    def encode_text(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        mask = torch.full((length, length), float("-inf")).triu(1)
        x = self.token_embedding(ids) + self.positional_embedding[:length]
        x = self.ln_final(self.transformer(x, mask))
        return normalize(x[torch.arange(len(ids)), ids.argmax(dim=-1)] @ self.text_projection, dim=-1)


def open_clip_config(vocabulary: int, *, quick_gelu: bool) -> dict[str, Any]:
    """As open_clip writes it; options that it writes with their defaults are among them."""
    return {
        "model_cfg": {
            "embed_dim": CHANNELS,
            "quick_gelu": quick_gelu,
            "vision_cfg": {
                "image_size": SIDE,
                "layers": LAYERS,
                "width": WIDTH,
                "head_width": WIDTH // 2,
                "mlp_ratio": 2.0,
                "patch_size": PATCH,
                "patch_dropout": 0.5,
                "pool_type": "tok",
                "ls_init_value": None,
            },
            "text_cfg": {
                "context_length": LONGEST,
                "vocab_size": vocabulary,
                "width": WIDTH,
                "heads": 2,
                "layers": LAYERS,
                "mlp_ratio": 2.0,
                "tokenizer_kwargs": {},
                "no_causal_mask": False,
            },
        },
        "preprocess_cfg": {
            "mean": [0.4, 0.5, 0.6],
            "std": [0.2, 0.3, 0.4],
            "interpolation": "bilinear",
            "fill_color": 0,
        },
    }


def save_open_clip(folder: Path, *, quick_gelu: bool, archive: bool) -> OpenCLIPModel:
    """A CLIP as open_clip saves it, with ``archive`` in its older file. Returns the model."""
    torch.manual_seed(5)
    tokenizer = clip_tokenizer()
    model = OpenCLIPModel(len(tokenizer), quick_gelu=quick_gelu).eval()
    folder.mkdir(exist_ok=True)
    tokenizer.save_pretrained(folder)
    written = json.dumps(open_clip_config(len(tokenizer), quick_gelu=quick_gelu))
    (folder / "open_clip_config.json").write_text(written, encoding="utf-8")
    if archive:
        torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    else:
        save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return model
