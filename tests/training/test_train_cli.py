"""simmim-train from end to end: what a checkpoint contains, and what is an error."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from simmim_export.training.evaluation.statistics import wilson

FAST = ("--steps", "3", "--batch-size", "4", "--eval-scenes", "64")
ONCE = ("--steps", "1", "--batch-size", "4", "--eval-scenes", "0")


def test_pretrain_finetune_evaluate(run_cli, tmp_path: Path) -> None:
    import torch

    from simmim_export.models.simmim.checkpoint import build, load
    from simmim_export.system.files import digest

    first, second = tmp_path / "pre.pt", tmp_path / "ckpt.pt"
    aligned = tmp_path / "aligned.pt"
    done = run_cli("train", "pretrain", *FAST, "--tags", "1", "--itm", "0", "--mlm", "0", "-o", aligned)
    assert done.returncode == 0, done.stderr
    assert "wrote" in done.stdout and all("untrained" in row for row in load(aligned).metrics.values())
    done = run_cli("train", "pretrain", "--from", aligned, *FAST, "-o", first)
    assert done.returncode == 0, done.stderr
    assert load(first).provenance["parent"]["sha256"] == digest(aligned)
    assert load(first).provenance["objectives"] == {"itc": 1.0, "itm": 1.0, "mlm": 1.0}
    done = run_cli("train", "finetune", "--from", first, *FAST, "-o", second, "--json")
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)
    checkpoint = load(second)
    build(checkpoint)
    assert checkpoint.metrics["vqa"] == metrics["vqa"]
    vqa = checkpoint.metrics["vqa"]
    assert vqa["n"] == 512 and set(vqa["controls"]) == {"question_only", "shuffled_image", "image_only"}
    assert sum(row["n"] for row in vqa["by_family"].values()) == 512
    low, high = vqa["interval"]
    assert low < vqa["accuracy"] < high
    assert checkpoint.provenance["parent"]["sha256"] == digest(first)
    assert checkpoint.provenance["steps"] == 3
    assert checkpoint.samples["pixels"].shape == (256, 64, 64, 3) and len(checkpoint.samples["texts"]) == 256
    assert len(set(checkpoint.samples["texts"])) > 200
    done = run_cli("train", "evaluate", second, "--eval-scenes", "64", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["vqa"]["accuracy"] == vqa["accuracy"]
    few = ("--steps", "1", "--batch-size", "4", "--eval-scenes", "0")
    other = ("--image-size", "96", "--freeze", "text")
    done = run_cli("train", "pretrain", "--from", second, *other, *few, "-o", tmp_path / "third.pt")
    assert done.returncode == 0, done.stderr
    third = load(tmp_path / "third.pt")
    assert "encoders have changed" in third.metrics["vqa"]["not_measured"]
    assert third.config.image_size == third.preprocessing["image"]["width"] == third.samples["pixels"].shape[1] == 96
    assert build(third).image_encoder.tokens == 36 and third.provenance["frozen"] == "text"
    moved = {key for key, value in third.state.items() if not torch.equal(value, checkpoint.state[key])}
    assert not any(key.startswith("text_encoder.encoder.") for key in moved)
    assert {"image_encoder.trunk.0.0.weight", "text_encoder.embed.weight"} <= moved


def test_init_with_another_trunk_and_a_folder(run_cli, tmp_path: Path) -> None:
    from simmim_export.models.simmim.checkpoint import build, load

    done = run_cli("train", "init", "--preset", "tiny", "--image-encoder", "resnet18", "-o", tmp_path / "folder")
    assert done.returncode == 0, done.stderr
    assert build(load(tmp_path / "folder")).image_encoder.tokens == 4


def test_init_with_a_pretrained_text_encoder(run_cli, tmp_path: Path) -> None:
    """A folder in Hugging Face's layout, written by transformers itself."""
    import torch
    from support import word_tokenizer
    from transformers import BertConfig, BertModel

    from simmim_export.models.simmim.checkpoint import build, load

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=16,
    )
    model = BertModel(config).eval()
    model.save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "tokenizer.json").write_text(word_tokenizer())
    done = run_cli("train", "init", "--text-encoder", tmp_path / "bert", "-o", tmp_path / "ckpt.pt")
    assert done.returncode == 0, done.stderr
    checkpoint = load(tmp_path / "ckpt.pt")
    assert checkpoint.config.max_length == 16
    built = build(checkpoint)
    ids = torch.tensor([[2, 5, 6, 3]])
    mask = torch.ones_like(ids)
    expected = built.text_encoder.project(model(input_ids=ids, attention_mask=mask).last_hidden_state)
    assert torch.allclose(built.encode_text(ids, mask)[0], expected, atol=1e-5)
    (tmp_path / "bert" / "tokenizer.json").unlink()
    done = run_cli("train", "init", "--text-encoder", tmp_path / "bert", "-o", tmp_path / "x.pt")
    assert done.returncode == 5 and "no tokenizer.json" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (("pretrain", "--steps", "1", "--from", "{ckpt}", "--preset", "small", "-o", "{tmp}/x.pt"), 2, "small"),
        (("pretrain", "--steps", "1", "--from", "{ckpt}", "-o", "{tmp}/x.pt"), 2, "[MASK]"),
        (("finetune", "--steps", "1", "--from", "{ckpt}", "--preset", "small", "-o", "{tmp}/x.pt"), 2, "small"),
        (("evaluate", "{ckpt}", "--eval-scenes", "4"), 5, "{ckpt}"),
        (("evaluate", "{ckpt}", "--data", "coco", "--data-root", "{tmp}/nowhere"), 2, "{tmp}/nowhere"),
        (("pretrain", *ONCE, "--optimizer", "adamw", "--lr", "1e45", "-o", "{tmp}/x.pt"), 4, "--lr"),
    ],
)
def test_bad_input_is_an_error_that_says_what_to_do(
    run_cli, tiny_checkpoint: Path, tmp_path: Path, arguments, code: int, named: str
) -> None:
    """Errors that only PyTorch can tell; test_options has those that come before it."""
    done = run_cli("train", *(a.format(tmp=tmp_path, ckpt=tiny_checkpoint) for a in arguments))
    assert done.returncode == code, done.stderr
    assert "error: " in done.stderr and "next:" in done.stderr
    assert named.format(ckpt=tiny_checkpoint, tmp=tmp_path) in done.stderr
    # The state of a model that became NaN is kept; nothing else is written.
    assert {path.name for path in tmp_path.iterdir()} <= {"x.pt.trainer"}


def test_a_table_says_what_is_not_trained_yet_in_one_line(run_cli, tmp_path: Path) -> None:
    done = run_cli("train", "init", "-o", tmp_path / "new.pt")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["not trained yet: match, vqa", f"wrote {tmp_path / 'new.pt'}"]


@pytest.mark.parametrize("command", ["init", "pretrain", "finetune", "evaluate", "draw", "import"])
def test_help_lists_common_options_before_those_for_experts(run_cli, command: str) -> None:
    done = run_cli("train", command, "--help")
    assert done.returncode == 0, done.stderr
    if command in ("pretrain", "finetune"):
        names = ["--preset", "--minutes", "Data:", "--split", "Model:", "--image-size", "For experts:", "--lr"]
        places = [done.stdout.index(name) for name in names]
        assert places == sorted(places)


@pytest.mark.parametrize("command", [("evaluate",), ("pretrain", "--steps", "1", "-o", "{tmp}/x.pt", "--from")])
def test_a_bundle_is_not_a_checkpoint(run_cli, tiny_bundle: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    done = run_cli("train", *(word.format(tmp=tmp_path) for word in command), tiny_bundle)
    assert done.returncode == 5 and "this is a bundle" in done.stderr and str(tiny_bundle) in done.stderr


def test_a_bundle_is_not_exported(run_cli, tiny_bundle: Path, tmp_path: Path) -> None:
    done = run_cli("export", "onnx", tiny_bundle, "-o", tmp_path / "deep" / "bundle")
    assert done.returncode == 5 and "this is a bundle" in done.stderr and list(tmp_path.iterdir()) == []


def test_a_full_disk_costs_no_checkpoint(run_cli, small_disk) -> None:
    disk = small_disk(64)
    done = run_cli("train", "init", "-o", disk / "deep" / "x.pt")
    assert done.returncode == 2 and str(disk / "deep" / "x.pt") in done.stderr and "Traceback" not in done.stderr
    done = run_cli("train", "init", "-o", disk / "folder")
    assert done.returncode == 2 and str(disk / "folder") in done.stderr and "Traceback" not in done.stderr
    assert list(disk.iterdir()) == []


def test_a_trainer_state_that_does_not_fit_on_the_disk_is_an_error(run_cli, small_disk) -> None:
    disk = small_disk(256)
    done = run_cli("train", "finetune", *ONCE, "-o", disk / "x.pt")
    assert done.returncode == 2 and str(disk / "x.pt.trainer") in done.stderr and "Traceback" not in done.stderr
    assert list(disk.iterdir()) == []


def test_the_state_is_kept_if_the_checkpoint_does_not_fit_on_the_disk(run_cli, small_disk) -> None:
    # The trainer's state takes 7 MB, and the checkpoint 6.
    disk = small_disk(9 << 10)
    done = run_cli("train", "finetune", *ONCE, "-o", disk / "x.pt")
    assert done.returncode == 2 and "--resume" in done.stderr and str(disk / "x.pt") in done.stderr
    assert [path.name for path in disk.iterdir()] == ["x.pt.trainer"]
    subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
    done = run_cli("train", "finetune", *ONCE, "-o", disk / "x.pt", "--resume")
    assert done.returncode == 0 and [path.name for path in disk.iterdir()] == ["x.pt"], done.stderr


@pytest.mark.parametrize("command", [("init",), ("pretrain", "--steps", "1"), ("evaluate", "none.pt")])
def test_a_seed_below_zero_is_refused(run_cli, tmp_path: Path, command: tuple[str, ...]) -> None:
    output = () if command[0] == "evaluate" else ("-o", tmp_path / "x.pt")
    done = run_cli("train", *command, "--seed", "-1", *output)
    assert done.returncode == 2 and "--seed" in done.stderr and not (tmp_path / "x.pt").exists()


def test_the_kind_of_the_output_is_checked_first(tmp_path: Path) -> None:
    from simmim_export.errors import UsageError
    from simmim_export.training.output import check_output

    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "folder").mkdir()
    for name in ("file", "file.pt"):
        (tmp_path / name).write_text("precious")
    for good in ("file.pt", "folder", "new.pt", "new", "lr0.001", "deep/new.pt"):
        check_output(tmp_path / good, overwrite=True)
    assert not (tmp_path / "deep").exists() and not any((tmp_path / "folder").iterdir())
    for bad in ("m.safetensors", "m.pth", "m.PT", "m.h5"):
        with pytest.raises(UsageError):
            check_output(tmp_path / bad, overwrite=True)
    with pytest.raises(UsageError):
        check_output(tmp_path / "folder.pt", overwrite=True)
    with pytest.raises(UsageError):
        check_output(tmp_path / "file", overwrite=True)
    with pytest.raises(UsageError):
        check_output(tmp_path / "file" / "x.pt", overwrite=True)
    (tmp_path / "nowhere").symlink_to(tmp_path / "none")
    with pytest.raises(UsageError):
        check_output(tmp_path / "nowhere" / "x.pt", overwrite=True)
    # To an administrator its permissions allow writing there; it takes no file all the same.
    with pytest.raises(UsageError):
        check_output(Path("/proc/x.pt"), overwrite=True)
    assert (tmp_path / "file").read_text() == "precious"


def test_a_missing_match_head_is_added(run_cli, tmp_path: Path) -> None:
    from support import make_checkpoint

    from simmim_export.models.simmim.checkpoint import load

    start = make_checkpoint(tmp_path / "start.pt", heads=("vqa",))
    done = run_cli("train", "pretrain", "--from", start, "--mlm", "0", *FAST, "-o", tmp_path / "pre.pt")
    assert done.returncode == 0, done.stderr
    assert load(tmp_path / "pre.pt").metrics["match"]["n"] == 128
    rehearse = ("--rehearse", "2", "--no-curriculum")
    done = run_cli("train", "finetune", "--from", start, *rehearse, *FAST, "-o", tmp_path / "tuned.pt")
    assert done.returncode == 0, done.stderr
    assert set(load(tmp_path / "tuned.pt").labels) == {"vqa", "match"}


@pytest.mark.parametrize("encoder", ["image", "text"])
def test_a_frozen_encoder_does_not_change_but_later_layers_learn(encoder: str) -> None:
    import torch
    from torch import nn

    from simmim_export.models.simmim.model import SimMIM
    from simmim_export.models.simmim.presets import preset
    from simmim_export.training.assemble import freeze
    from simmim_export.training.loop import set_training

    torch.manual_seed(0)
    model = SimMIM(preset("tiny"))
    freeze(model, encoder)
    set_training(model)
    norms = [m for m in model.image_encoder.trunk.modules() if isinstance(m, nn.BatchNorm2d)]
    assert model.training and {norm.training for norm in norms} == {encoder == "text"}
    tower = model.image_encoder if encoder == "image" else model.text_encoder
    body = tower.trunk if encoder == "image" else tower.encoder
    before = {key: value.clone() for key, value in body.state_dict().items()}
    pixels, ids = torch.zeros(2, 64, 64, 3, dtype=torch.uint8), torch.ones(2, 4, dtype=torch.int64)
    (model.encode_image(pixels)[1].sum() + model.encode_text(ids, ids)[1].sum()).backward()
    assert all(torch.equal(before[key], value) for key, value in body.state_dict().items())
    assert all(parameter.grad is None for parameter in body.parameters())
    assert tower.embed.weight.grad is not None and tower.embed.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("trunk", "sizes"), [("tiny", range(32, 66)), ("resnet18", (33, 34, 48, 63, 64, 65, 66, 96, 97, 225))]
)
def test_there_are_as_many_positions_as_tokens_at_any_size(trunk: str, sizes: Sequence[int]) -> None:
    import torch

    from simmim_export.models.simmim.encoders import ImageEncoder

    torch.manual_seed(0)
    for size in sizes:
        encoder = ImageEncoder(trunk, size, width=32, embed_dim=16).eval()
        with torch.no_grad():
            tokens, _ = encoder(torch.zeros(1, size, size, 3, dtype=torch.uint8))
        assert tokens.shape == (1, encoder.tokens, 32)


def test_an_interaction_with_fixed_tokens_cannot_be_resized(tmp_path: Path) -> None:
    from support import make_checkpoint

    from simmim_export.errors import UsageError
    from simmim_export.models.simmim.checkpoint import build, load
    from simmim_export.training.assemble import resized

    attention = load(make_checkpoint(tmp_path / "a.pt"))
    assert build(resized(attention, image_size=96)).image_encoder.tokens == 36
    linear = load(make_checkpoint(tmp_path / "b.pt", interaction="linear"))
    with pytest.raises(UsageError, match="64 pixels"):
        resized(linear, image_size=96)
    longer = resized(attention, max_length=64)
    assert build(longer) and (longer.config.max_length, longer.config.image_size) == (64, 64)
    with pytest.raises(UsageError, match=r"64 .* 65") as caught:
        resized(attention, max_length=65)
    assert "--max-length 64" in str(caught.value.fix)
    with pytest.raises(UsageError, match="20 tokens"):
        resized(linear, max_length=21)


def test_a_model_of_longer_texts_has_positions_for_them() -> None:
    from simmim_export.models.simmim.checkpoint import build
    from simmim_export.training.assemble import NewModel, new_checkpoint
    from simmim_export.training.tokenizer import encode, read_tokenizer

    made = new_checkpoint(NewModel("tiny", max_length=100), seed=0)
    assert made.config.max_length == made.preprocessing["text"]["max_length"] == 100
    tokens = encode(read_tokenizer(made.tokenizer), ["red " * 98], max_length=made.config.max_length)
    assert build(made).encode_text(**tokens)[0].shape == (1, 100, 96)


def test_clips_of_more_frames_than_the_checkpoint_takes(tmp_path: Path) -> None:
    from support import make_checkpoint

    from simmim_export.errors import UsageError
    from simmim_export.models.simmim.checkpoint import load
    from simmim_export.training.assemble import with_head

    known = load(make_checkpoint(tmp_path / "a.pt", frames=4, heads=("video_class",)))
    assert with_head(known, "video_class", labels=known.labels["video_class"], frames=4, seed=0) is known
    for labels in (known.labels["video_class"], ["up", "down", "left"]):
        with pytest.raises(UsageError, match=r"4 .* 8") as caught:
            with_head(known, "video_class", labels=labels, frames=8, seed=0)
        assert "init --frames 8" in str(caught.value.fix)


def test_a_batch_too_small_for_batch_norm_is_an_error() -> None:
    from dataclasses import replace

    from simmim_export.errors import UsageError
    from simmim_export.models.simmim.model import SimMIM
    from simmim_export.models.simmim.presets import preset
    from simmim_export.training.assemble import check_batch, freeze

    model = SimMIM(replace(preset("tiny"), image_trunk="resnet18", image_size=32))
    with pytest.raises(UsageError) as caught:
        check_batch(model, 1)
    assert "--batch-size 2 or more, or --image-size 64" in str(caught.value.fix)
    check_batch(model, 2)
    freeze(model, "image")
    check_batch(model, 1)


def test_draw(run_cli, tmp_path: Path) -> None:
    from PIL import Image

    done = run_cli(
        "train", "draw", "--stream", "demo", "--count", "3", "--size", "96", "-o", tmp_path / "out", "--json"
    )
    assert done.returncode == 0, done.stderr
    records = json.loads(done.stdout)
    assert records == json.loads((tmp_path / "out/records.json").read_text()) and len(records) == 3
    with Image.open(tmp_path / "out" / records[0]["image"]) as image:
        assert image.size == (96, 96)
    assert (tmp_path / "out/sheet.png").exists()
    done = run_cli("train", "draw", "--data", "clips", "--count", "1", "-o", tmp_path / "clips")
    assert f"wrote 1 pictures, records.json to {tmp_path / 'clips'}" in done.stdout, done.stderr
    assert sorted(path.name for path in (tmp_path / "clips").iterdir()) == ["0000.webp", "records.json"]


def test_wilsons_interval_matches_published_values() -> None:
    """Brown, Cai and DasGupta, 2001, give 0.0 to 0.278 for none of ten."""
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-3)
    assert np.mean(wilson(50, 100)) == pytest.approx(0.5)
