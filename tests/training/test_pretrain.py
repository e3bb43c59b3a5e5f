"""Pretraining objectives on a real model and real captions: what a batch holds, what a loss trains, and what is an
error."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

from simmim_export.errors import UsageError
from simmim_export.models.simmim.checkpoint import build
from simmim_export.training.assemble import NewModel, new_checkpoint
from simmim_export.training.data.base import CAPTIONS, Source
from simmim_export.training.data.files import Files
from simmim_export.training.data.records import Record
from simmim_export.training.data.shapes import Shapes
from simmim_export.training.data.shapes.scene import COLORS
from simmim_export.training.data.shapes.words import NUMBERS
from simmim_export.training.pretrain import OBJECTIVES, Pretrain, alike


@pytest.fixture(scope="module")
def parts():
    started = new_checkpoint(NewModel(), seed=0)
    return build(started), Tokenizer.from_str(started.tokenizer)


def stage(parts, images: int = 6, **weights: float) -> Pretrain:
    return Pretrain(*parts, source=Source(Shapes(0), images), weights=weights)


@pytest.mark.parametrize(
    ("weights", "images", "expected"),
    [
        ({"itc": 1.0}, 1, "2 images or more"),
        ({"itm": 1.0}, 1, "2 images or more"),
        ({}, 6, "needs an objective"),
        ({"itc": 0.0, "mlm": 0.0}, 6, "needs an objective"),
        ({"mlm": -1.0}, 6, "0 or more"),
        ({"itc": float("nan"), "mlm": 1.0}, 6, "0 or more"),
        ({"clip": 1.0}, 6, "unknown objective 'clip'"),
    ],
)
def test_senseless_objectives_are_errors(parts, weights: dict[str, float], images: int, expected: str) -> None:
    with pytest.raises(UsageError, match=expected) as caught:
        stage(parts, images, **weights)
    assert caught.value.exit_code == 2 and caught.value.fix


def test_one_image_cannot_be_contrasted(parts) -> None:
    with pytest.raises(UsageError, match="the data have 1"):
        Pretrain(*parts, source=Source(Shapes(0, examples=1), 4), weights={"itc": 1.0})
    Pretrain(*parts, source=Source(Shapes(0, examples=1), 4), weights={"mlm": 1.0})


def test_only_mlm_needs_a_mask_token(parts) -> None:
    from support import word_tokenizer

    plain = Tokenizer.from_str(word_tokenizer())
    with pytest.raises(UsageError, match=r"no \[MASK\]"):
        Pretrain(parts[0], plain, source=Source(Shapes(0), 2), weights={"mlm": 1.0})
    Pretrain(parts[0], plain, source=Source(Shapes(0), 2), weights={"itc": 1.0})


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_each_objective_trains_the_parts_it_reads(parts, name: str) -> None:
    """Its gradient arrives in the towers it reads, and where it fuses, in the interaction too."""
    pretrain = stage(parts, **{name: 1.0}).train()
    pretrain.zero_grad()
    pretrain(pretrain.batch(0, 0.0)).backward()
    reached = {key.split(".")[1] for key, p in pretrain.named_parameters() if key.startswith("model.") and _moves(p)}
    expected = {
        "itc": {"image_encoder", "text_encoder", "logit_scale"},
        "itm": {"image_encoder", "text_encoder", "interaction", "heads"},
        "mlm": {"image_encoder", "text_encoder", "interaction"},
        "tags": {"image_encoder"},
        "mim": {"image_encoder"},
    }
    assert reached == expected[name]
    own = [p for key, p in pretrain.named_parameters() if not key.startswith("model.")]
    assert bool(own) == (name in ("mlm", "tags", "mim")) and all(_moves(p) for p in own)


def _moves(parameter: torch.nn.Parameter) -> bool:
    return parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)


def test_the_loss_is_the_weighted_sum(parts) -> None:
    torch.manual_seed(0)
    both = stage(parts, mlm=0.5, tags=0.25).eval()
    batch = both.batch(3, 0.0)
    whole = both(batch)
    single = {}
    for name in ("mlm", "tags"):
        one = stage(parts, **{name: 1.0}).eval()
        one.objectives[name].load_state_dict(both.objectives[name].state_dict())
        single[name] = one(one.batch(3, 0.0))
    assert whole.item() == pytest.approx(0.5 * single["mlm"].item() + 0.25 * single["tags"].item(), rel=1e-5)


def test_mlm_works_with_one_image_and_hides_the_answer(parts) -> None:
    pretrain = stage(parts, images=1, mlm=1.0)
    batch = pretrain.batch(0, 0.0)
    assert batch["masked_ids"].shape == batch["hidden"].shape == batch["masked_attention"].shape
    assert len(batch["masked_ids"]) == 5 and "input_ids" not in batch
    assert (batch["masked_ids"][batch["hidden"]] == parts[1].token_to_id("[MASK]")).all()
    words = [parts[1].id_to_token(int(i)) for i in batch["hidden_words"]]
    assert set(words) <= set(Shapes(0).visual_words()) and len(words) == batch["hidden"].sum()
    assert pretrain(batch).isfinite()


COUNTS = (5, 7, 6)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Three pictures on disk with 5, 7 and 6 captions, as in COCO; each caption names the picture's number and its own."""
    folder = tmp_path_factory.mktemp("told")
    made = []
    for row, count in enumerate(COUNTS):
        Image.new("RGB", (64, 64), (80 * row, 0, 0)).save(folder / f"{row}.png")
        words = tuple(f"A {NUMBERS[row]} {COLORS[place]} circle" for place in range(count))
        made.append(Record(f"{row}", (folder / f"{row}.png",), captions=words))
    return Files("told", folder, read=lambda name, root, split: made, splits={"train": "train"})


def test_hidden_words_are_those_of_captions_of_their_own_image(parts, told: Files) -> None:
    pretrain = Pretrain(*parts, source=Source(told, 3), weights={"mlm": 1.0})
    seen = set()
    for index in range(60):
        batch = pretrain.batch(index, 0.0)
        ids = batch["masked_ids"].clone()
        ids[batch["hidden"]] = batch["hidden_words"]
        texts = [text.split() for text in parts[1].decode_batch(ids.tolist())]
        images = [NUMBERS[int(pixels[0, 0, 0]) // 80] for pixels in batch["pixels"]]
        assert [text[2] for text in texts] == [image for image in images for _ in range(5)]
        assert len({tuple(text) for text in texts}) == 15
        seen |= {tuple(text) for text in texts}
    assert len(seen) == sum(COUNTS) and pretrain(batch).isfinite()


def test_two_captions_of_one_image_are_both_positives(parts, told: Files) -> None:
    """A batch of four of three pictures holds one of them twice, with another caption."""
    pretrain = Pretrain(*parts, source=Source(told, 4), weights={"itc": 1.0, "itm": 1.0})
    batch = pretrain.batch(0, 0.0)
    images = [int(pixels[0, 0, 0]) for pixels in batch["pixels"]]
    assert len(set(batch["caption_ids"].tolist())) == 4 and len(set(images)) == 3
    same = alike(batch["image_ids"], batch["caption_ids"])
    assert same.tolist() == [[a == b for b in images] for a in images]
    equal = alike(torch.tensor([1, 2, 3]), torch.tensor([7, 8, 7]))
    assert equal.tolist() == [[True, False, True], [False, True, False], [True, False, True]]
    assert pretrain(batch).isfinite()


def test_tags_are_read_as_the_phrases_are_written(parts, told: Files) -> None:
    pretrain = Pretrain(*parts, source=Source(told, 3), weights={"tags": 1.0})
    prepared = pretrain.objectives["tags"].prepare([["A ONE Red CIRCLE"], ["nothing"]], 0)["present"]
    names = [name for name, row in zip(told.phrases(), prepared.T.tolist(), strict=True) if row[0]]
    assert names == ["circle"] and not prepared[1].any()


def test_tags_are_the_words_and_pairs_in_the_captions(parts) -> None:
    pretrain = stage(parts, tags=1.0)
    batch, shapes = pretrain.batch(2, 0.0), Shapes(0).batch(2, 6, want=CAPTIONS)
    names = Shapes(0).phrases()
    for row, texts in enumerate(shapes.captions):
        padded = [f" {text.replace(',', ' ,')} " for text in texts]
        assert batch["present"][row].tolist() == [float(any(f" {n} " in text for text in padded)) for n in names]


def test_every_process_sees_its_own_part_of_a_batch(parts) -> None:
    numbers = [
        Source(Shapes(0), 2, process=process, processes=3).number(index) for index in range(2) for process in range(3)
    ]
    assert numbers == list(range(6))


def test_hidden_patches_are_hidden_and_batch_norm_keeps_its_statistics(parts) -> None:
    pretrain = stage(parts, mim=1.0).train()
    batch = pretrain.batch(0, 0.0)
    assert batch["holes"].shape == (6, 4, 4) and (batch["holes"].sum(dim=(1, 2)) == 10).all()
    before = {key: value.clone() for key, value in pretrain.state_dict().items() if "running" in key}
    one = pretrain.objectives["mim"].loss(parts[0], batch, seen=None)
    assert all(torch.equal(pretrain.state_dict()[key], value) for key, value in before.items())
    assert all(m.training for m in pretrain.modules())
    # What is under the holes is what must be painted, so it changes the loss, but never what is painted.
    painted: list[torch.Tensor] = []
    hook = pretrain.objectives["mim"].paint.register_forward_hook(lambda m, i, out: painted.append(out))
    hidden = batch["holes"].repeat_interleave(16, 1).repeat_interleave(16, 2)[..., None]
    pretrain.objectives["mim"].loss(parts[0], batch, seen=None)
    other = batch | {"pixels": torch.where(hidden, 255 - batch["pixels"], batch["pixels"])}
    two = pretrain.objectives["mim"].loss(parts[0], other, seen=None)
    hook.remove()
    assert torch.equal(*painted) and one.item() != pytest.approx(two.item(), rel=0.01)
