"""A checkpoint loads strictly or not at all, and nothing in it is ever executed."""

from __future__ import annotations

import os
import pickle  # noqa: TID251 - to write an attack
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simmim_export.errors import CheckpointError
from simmim_export.models.simmim import checkpoint as ckpt


def edited(source: Path, target: Path, edit) -> Path:
    """A copy of ``source`` whose content went through ``edit(content)``."""
    content = torch.load(source, weights_only=True)
    edit(content)
    torch.save(content, target)
    return target


def refused(path: Path, *expected: str) -> None:
    """Loading and building ``path`` raises a CheckpointError that names the file and all of ``expected``."""
    with pytest.raises(CheckpointError) as caught:
        ckpt.build(ckpt.load(path), path)
    assert caught.value.exit_code == 5
    assert str(path) in str(caught.value)
    assert caught.value.fix
    for text in expected:
        assert text in str(caught.value)


def test_both_forms_keep_everything(tiny_checkpoint: Path, tmp_path: Path) -> None:
    loaded = ckpt.load(tiny_checkpoint)
    for target in (tmp_path / "copy.pt", tmp_path / "folder"):
        ckpt.save(loaded, target)
        again = ckpt.load(target)
        assert again.config == loaded.config
        assert again.labels == loaded.labels and again.samples["texts"] == loaded.samples["texts"]
        assert torch.equal(again.samples["pixels"], loaded.samples["pixels"])
        assert all(torch.equal(again.state[key], value) for key, value in loaded.state.items())
        ckpt.build(again)


def test_a_missing_checkpoint_is_an_error(tmp_path: Path) -> None:
    refused(tmp_path / "none.pt", "no such checkpoint", "simmim-train")


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "empty.pt"
    path.touch()
    refused(path, "empty")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_a_truncated_file_is_an_error(tiny_checkpoint: Path, tmp_path: Path, share: float) -> None:
    data = tiny_checkpoint.read_bytes()
    path = tmp_path / "cut.pt"
    path.write_bytes(data[: int(len(data) * share)])
    refused(path, "truncated")


def test_another_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "text.pt"
    path.write_text("hello")
    refused(path, "not a checkpoint")
    torch.save({"weights": torch.zeros(3)}, path)
    refused(path, "not a SimMIM checkpoint")
    torch.save([1, 2], path)
    refused(path, "not a SimMIM checkpoint")


class Attack:
    """Runs a command when unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return os.system, (f"touch {self.witness}",)


def test_pickled_code_is_never_executed(tiny_checkpoint: Path, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    path = edited(tiny_checkpoint, tmp_path / "evil.pt", lambda c: c["metrics"].update(x=Attack(witness)))
    refused(path, "pickled code", "never executed")
    raw = tmp_path / "raw.pt"
    raw.write_bytes(pickle.dumps(Attack(witness)))
    refused(raw, "not a checkpoint")
    assert not witness.exists()


def test_missing_unexpected_and_misshapen_keys_are_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def spoil(content: dict) -> None:
        state = content["state"]
        del state["logit_scale"]
        state["nobody.weight"] = torch.zeros(1)
        state["heads.match.classify.weight"] = torch.zeros(3, 5)

    path = edited(tiny_checkpoint, tmp_path / "keys.pt", spoil)
    refused(
        path, "missing: logit_scale", "unexpected: nobody.weight", "misshapen: heads.match.classify.weight is [3, 5]"
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_weights_are_named(tiny_checkpoint: Path, tmp_path: Path, bad: float) -> None:
    path = edited(tiny_checkpoint, tmp_path / "nan.pt", lambda c: c["state"]["image_encoder.kind"].__setitem__(1, bad))
    refused(path, "image_encoder.kind", "NaN or Inf")


def test_a_future_schema_is_an_error(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = edited(tiny_checkpoint, tmp_path / "future.pt", lambda c: c.update(schema=ckpt.SCHEMA + 1))
    refused(path, f"schema {ckpt.SCHEMA + 1}", "pip install -U")


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda c: c.update(schema="1"), "schema is '1'"),
        (lambda c: c.pop("labels"), "labels"),
        (lambda c: c.update(tokenizer=3), "$.tokenizer"),
        (lambda c: c["config"].update(colour="red"), "$.config: colour"),
        (lambda c: c["config"].update(fusion="magic"), "fusion 'magic'"),
        (lambda c: c["config"].update(interaction="magic"), "interaction 'magic'"),
        (lambda c: c["config"].update(image_trunk="magic"), "image encoder 'magic'"),
        (lambda c: c["config"]["text"].update(model_type="magic"), "configuration"),
        (lambda c: c["config"].update(attention_heads=5), "configuration"),
        (lambda c: c["config"].update(heads=5), "$.config.heads"),
        (lambda c: c["config"].update(heads={"match": "2"}), "$.config.heads[...]"),
        (lambda c: c["config"].update(frames=True), "$.config.frames"),
        (lambda c: c["config"].update(max_length=65), "65 tokens"),
        (lambda c: c["config"].update(interaction_layers=2**40), f"'interaction': {2**40}"),
        (lambda c: c["config"]["text"].update(vocab_size="x"), "'x' embeddings"),
        (lambda c: c["config"]["text"].update(vocab_size=8), "8 embeddings"),
        (lambda c: c["labels"].update(vqa=["one"]), "head 'vqa' has 4 classes but 1"),
        (lambda c: c.update(labels={"match": 2}), "$.labels[...]"),
        (lambda c: c["metrics"].update(match=5), "$.metrics[...]"),
        (lambda c: c["preprocessing"].pop("image"), "$.preprocessing"),
        (lambda c: c.update(tokenizer="x"), "tokenizer.json"),
        (lambda c: c["state"].update(logit_scale=3.0), "'logit_scale'"),
        (lambda c: c.update(state=3), "'state'"),
        (lambda c: c.update(evidence="none"), "'evidence'"),
        (lambda c: c["samples"].update(texts=[]), "$.samples.texts"),
        (lambda c: c["samples"].update(pixels=torch.zeros(16, 3, 64, 64)), "samples"),
    ],
)
def test_content_that_does_not_fit_is_an_error(tiny_checkpoint: Path, tmp_path: Path, edit, expected: str) -> None:
    refused(edited(tiny_checkpoint, tmp_path / "odd.pt", edit), expected)


def places(content: dict, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The keys that lead to everything in nested dicts."""
    keys = []
    for key, value in content.items():
        keys += [(*above, key), *(places(value, (*above, key)) if isinstance(value, dict) else [])]
    return keys


ODD = st.one_of(
    st.sampled_from([None, True, 0, -1, 5, 2**40, 2**70, 0.5, float("nan"), "", "x", [], ["a"], {}, {"match": 2}]),
    st.dictionaries(st.text(max_size=3), st.integers(-3, 3) | st.text(max_size=3), max_size=2),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_in_any_place_is_harmless_or_an_error(
    tiny_checkpoint: Path, tmp_path: Path, data: st.DataObject
) -> None:
    """Any value anywhere but in the state is harmless, or there is a CheckpointError."""
    content = torch.load(tiny_checkpoint, weights_only=True)
    state = content.pop("state")
    *above, key = data.draw(st.sampled_from(places(content)))
    inner = content
    for name in above:
        inner = inner[name]
    inner[key] = data.draw(ODD)
    try:
        torch.save({"state": state} | content, tmp_path / "odd.pt")
        ckpt.build(ckpt.load(tmp_path / "odd.pt"))
    except CheckpointError as error:
        assert error.fix


def test_a_damaged_folder_is_an_error(tiny_checkpoint: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    ckpt.save(ckpt.load(tiny_checkpoint), whole)
    for name in ("checkpoint.json", "model.safetensors"):
        broken = tmp_path / f"broken-{name}"
        shutil.copytree(whole, broken)
        data = (broken / name).read_bytes()
        (broken / name).write_bytes(data[: len(data) // 2])
        refused(broken, "damaged")
        (broken / name).unlink()
        refused(broken, f"no {name}")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255))
def test_a_flipped_byte_never_crashes(tiny_checkpoint: Path, tmp_path: Path, position: float, value: int) -> None:
    """Whatever a flip hits, the weights are those that were saved, or there is a CheckpointError."""
    data = bytearray(tiny_checkpoint.read_bytes())
    data[int(position * len(data))] ^= value
    path = tmp_path / "flipped.pt"
    path.write_bytes(data)
    try:
        loaded = ckpt.load(path)
    except CheckpointError as error:
        assert error.fix
    else:
        assert all(torch.equal(loaded.state[key], value) for key, value in ckpt.load(tiny_checkpoint).state.items())
