"""The loop: exact resume after a kill, a schedule that ends at zero, errors that say what to do."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from simmim_export.errors import DataError, EngineUnavailable, GateFailed, UsageError
from simmim_export.models.simmim.checkpoint import load
from simmim_export.training.data.base import Want
from simmim_export.training.loop import train, update
from simmim_export.training.optimizers import make_optimizers
from simmim_export.training.recipe import Recipe
from simmim_export.training.trainer_state import Progress, load_state, save_state


class Line(nn.Module):
    """Fits y = 3 x + 1 from numbered batches."""

    def __init__(self, spoil_at: int = -1) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.spoil_at = spoil_at

    def batch(self, index: int, done: float):
        x = torch.randn(16, 1, generator=torch.Generator().manual_seed(index))
        return {"x": x * float("nan") if index == self.spoil_at else x, "kept": "text"}

    def samples(self, batch):
        return len(batch["x"])

    def forward(self, batch):
        x = batch["x"]
        return (self.layer(x) - (3 * x + 1)).square().mean() + 0 * torch.rand(())


def test_learns_and_reports(tmp_path: Path) -> None:
    torch.manual_seed(0)
    line, seen = Line(), []
    recipe = Recipe(steps=400, lr=0.1, weight_decay=0)
    done = train(line, recipe, state_path=tmp_path / "s", watch=lambda p, share: seen.append(share))
    assert done.step == 400 and done.samples == 6400 and seen[-1] == 1 and len(seen) == 400
    assert line.layer.weight.item() == pytest.approx(3, abs=0.02) and line.layer.bias.item() == pytest.approx(
        1, abs=0.02
    )


def test_minutes_end_the_training_with_a_decayed_rate(tmp_path: Path) -> None:
    recipe = Recipe(minutes=0.01)
    done = train(Line(), recipe, state_path=tmp_path / "s")
    assert done.seconds >= 0.6 and done.step > 10 and done.done(recipe) == 1


def test_the_learning_rate_warms_up_and_decays_to_zero() -> None:
    recipe = Recipe(steps=10, warmup=0.1)
    assert recipe.lr_scale(0) < 0.05 and recipe.lr_scale(1) == pytest.approx(0)
    assert recipe.lr_scale(0.1) > 0.95 > recipe.lr_scale(0.5) > recipe.lr_scale(0.9)


def test_accumulation_equals_one_large_batch(tmp_path: Path) -> None:
    weights = []
    for accumulate in (1, 4):

        class Large(Line):
            def batch(self, index: int, done: float, parts: int = 4 // accumulate):
                return {"x": torch.cat([Line.batch(self, index * parts + i, done)["x"] for i in range(parts)])}

        torch.manual_seed(0)
        line = Large()
        recipe = Recipe(steps=5, lr=0.1, accumulate=accumulate, clip=1e9)
        train(line, recipe, state_path=tmp_path / "s")
        weights.append(line.layer.weight.item())
    assert weights[0] == pytest.approx(weights[1], rel=1e-5)


def test_nan_stops_training_and_names_the_step(tmp_path: Path) -> None:
    with pytest.raises(GateFailed, match="step 3") as caught:
        train(Line(spoil_at=3), Recipe(steps=10), state_path=tmp_path / "s")
    assert caught.value.exit_code == 4 and "--lr" in str(caught.value)


@pytest.mark.parametrize(
    "options", [{}, {"steps": 1, "minutes": 1.0}, {"steps": 0}, {"minutes": -1.0}, {"steps": 1, "optimizer": "sgd"}]
)
def test_a_senseless_length_of_training_is_an_error(options: dict) -> None:
    with pytest.raises(UsageError):
        Recipe(**options)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        *(({"minutes": value}, "--minutes") for value in (NAN, INF, 0.0)),
        *(({"steps": 1, "lr": value}, "--lr") for value in (NAN, INF, 0.0, -1e-3)),
        *(({"steps": 1, "seed": value}, "--seed") for value in (-1, 2**63)),
        *(({"steps": 1, "mixed_precision": value}, "mixed precision") for value in ("fp8", "FP16", "")),
    ],
)
def test_senseless_values_of_a_recipe_are_errors(options: dict, named: str) -> None:
    with pytest.raises(UsageError, match=named) as caught:
        Recipe(**options)
    assert caught.value.fix


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU here, which has FP16")
def test_fp16_without_a_gpu_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable):
        train(Line(), Recipe(steps=1, mixed_precision="fp16"), state_path=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_every_parameter_has_one_optimizer_and_the_matrices_of_blocks_have_muon() -> None:
    from simmim_export.models.simmim.checkpoint import build
    from simmim_export.training.assemble import NewModel, new_checkpoint

    model = build(new_checkpoint(NewModel(), seed=0))
    model.logit_scale.requires_grad_(False)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for kind in ("muon", "adamw"):
        optimizers = make_optimizers(model, Recipe(steps=1, optimizer=kind))
        taken = [names[id(p)] for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        assert sorted(taken) == sorted(name for name in names.values() if name != "logit_scale")
    _, muon = make_optimizers(model, Recipe(steps=1, lr=1e-3))
    moved = {names[id(p)] for p in muon.param_groups[0]["params"]}
    assert muon.param_groups[0]["peak_lr"] == 5e-3
    assert all("layer" in name and name.endswith("weight") for name in moved)
    assert "interaction.layers.0.mixing.key_value.weight" in moved and any(
        name.startswith("text_encoder") for name in moved
    )
    assert not any(part in name for name in moved for part in ("embeddings", "trunk", "heads", "norm"))
    decays = {names[id(p)]: g["weight_decay"] for o in optimizers for g in o.param_groups for p in g["params"]}
    assert all(
        (decay == 0) == (name.endswith("bias") or "norm" in name.lower() or "bn" in name)
        for name, decay in decays.items()
        if "trunk" not in name and "kind" not in name
    )


def test_a_state_of_another_recipe_or_model_is_refused(tmp_path: Path) -> None:
    path, line = tmp_path / "s", Line()
    recipe = Recipe(steps=10)
    optimizers = make_optimizers(line, recipe)
    with pytest.raises(UsageError) as caught:
        load_state(path, line, optimizers=optimizers, recipe=recipe)
    assert caught.value.where == str(path)
    save_state(path, line, optimizers=optimizers, recipe=recipe, progress=Progress(step=3))
    assert load_state(path, line, optimizers=optimizers, recipe=recipe).step == 3
    with pytest.raises(UsageError, match="steps was 10, is 11"):
        load_state(path, line, optimizers=optimizers, recipe=Recipe(steps=11))
    with pytest.raises(UsageError):
        load_state(path, nn.Linear(5, 5), optimizers=optimizers, recipe=recipe)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError) as caught:
        load_state(path, line, optimizers=optimizers, recipe=recipe)
    assert caught.value.exit_code == 5 and caught.value.where == str(path)


def test_a_state_of_other_batches_is_refused(tmp_path: Path) -> None:
    path, line, recipe = tmp_path / "s", Line(), Recipe(steps=10)
    optimizers = make_optimizers(line, recipe)
    own = {"batch_size": 4, "split": "iid", "objectives": {"itc": 1.0}, "parent": None}
    save_state(path, line, optimizers=optimizers, recipe=recipe, progress=Progress(step=3), batches=own)
    assert load_state(path, line, optimizers=optimizers, recipe=recipe, batches=dict(own)).step == 3
    other = own | {"batch_size": 8, "parent": "ab12"}
    with pytest.raises(UsageError, match="batch_size was 4, is 8; parent was None, is ab12"):
        load_state(path, line, optimizers=optimizers, recipe=recipe, batches=other)
    with pytest.raises(UsageError, match="split was iid, is None"):
        load_state(path, line, optimizers=optimizers, recipe=recipe)


class Block(nn.Module):
    """A hidden matrix, which is Muon's, and vectors, which are AdamW's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(6, 6)])


def stepped(scaler: torch.amp.GradScaler | None, spoil: str = "", value: float = 1.0) -> dict[str, torch.Tensor]:
    """The weights and Muon's momentum after two steps, the second of which meets ``value`` in the gradient of ``spoil``."""
    block = Block()
    optimizers = make_optimizers(block, Recipe(steps=2, lr=0.01))
    for step in range(2):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        loss = block.layers[0](x).square().mean()
        (loss if scaler is None else scaler.scale(loss)).backward()
        if spoil and step:
            dict(block.named_parameters())[spoil].grad[0] = value
        update(block, optimizers, clip=0.5, scaler=scaler)
        assert all(parameter.grad is None for parameter in block.parameters())
        if not step:
            first = {name: p.detach().clone() for name, p in block.named_parameters()}
    # Muon's steps do not tell how large its gradients were; its momentum does.
    momentum = optimizers[1].state[block.layers[0].weight]["momentum_buffer"]
    now = {name: p.detach() for name, p in block.named_parameters()}
    return now | {"momentum": momentum} | {f"first {name}": value for name, value in first.items()}


def test_scaled_gradients_are_unscaled_once_for_every_optimizer() -> None:
    scaled, plain = stepped(torch.amp.GradScaler("cpu", init_scale=1024.0)), stepped(None)
    assert all(torch.allclose(scaled[name], plain[name], atol=1e-7) for name in plain)


@pytest.mark.parametrize("spoil", ["layers.0.weight", "layers.0.bias"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_overflow_anywhere_skips_the_step_of_all_and_lowers_the_scale(spoil: str, value: float) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    after = stepped(scaler, spoil, value)
    assert all(torch.equal(after[name], after[f"first {name}"]) for name in ("layers.0.weight", "layers.0.bias"))
    assert scaler.get_scale() == 512


def test_the_scale_of_fp16_losses_is_saved_with_the_state(tmp_path: Path) -> None:
    path, line, recipe = tmp_path / "s", Line(), Recipe(steps=10)
    optimizers = make_optimizers(line, recipe)
    save_state(
        path,
        line,
        optimizers=optimizers,
        recipe=recipe,
        progress=Progress(),
        scaler=torch.amp.GradScaler("cpu", init_scale=64.0),
    )
    other = torch.amp.GradScaler("cpu")
    load_state(path, line, optimizers=optimizers, recipe=recipe, scaler=other)
    assert other.get_scale() == 64


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_random_numbers_of_a_gpu_are_saved_with_the_state(tmp_path: Path) -> None:
    path, line, recipe = tmp_path / "s", Line(), Recipe(steps=10)
    optimizers = make_optimizers(line, recipe)
    save_state(path, line, optimizers=optimizers, recipe=recipe, progress=Progress())
    drawn = torch.rand(4, device="cuda")
    load_state(path, line, optimizers=optimizers, recipe=recipe)
    assert torch.equal(torch.rand(4, device="cuda"), drawn)


@pytest.mark.parametrize("save_every", [2, 5, 500])
def test_a_finished_training_is_not_repeated(tmp_path: Path, save_every: int) -> None:
    line, recipe = Line(), Recipe(steps=5, lr=0.1, save_every=save_every)
    done = train(line, recipe, state_path=tmp_path / "s")
    again, seen = Line(), []
    resumed = train(again, recipe, state_path=tmp_path / "s", resume=True, watch=lambda *step: seen.append(step))
    assert resumed == done and seen == []
    assert torch.equal(again.layer.weight, line.layer.weight) and torch.equal(again.layer.bias, line.layer.bias)


ARGUMENTS = (
    "finetune",
    "--steps",
    "12",
    "--batch-size",
    "4",
    "--save-every",
    "3",
    "--eval-scenes",
    "64",
    "--rehearse",
    "3",
    "--no-curriculum",
)


def test_the_curriculum_advances_with_accuracy_and_is_saved_with_the_state() -> None:
    from tokenizers import Tokenizer

    from simmim_export.models.simmim.checkpoint import build
    from simmim_export.training.assemble import NewModel, new_checkpoint
    from simmim_export.training.data.base import Source
    from simmim_export.training.data.shapes import Shapes
    from simmim_export.training.data.shapes.questions import FAMILIES
    from simmim_export.training.recipe import FinetuneSettings
    from simmim_export.training.tasks import CURRICULUM, Answers

    started = new_checkpoint(NewModel(), seed=0)
    parts = {
        "model": build(started),
        "tokenizer": Tokenizer.from_str(started.tokenizer),
        "source": Source(Shapes(0), 2),
    }
    stage = Answers("vqa", **parts, settings=FinetuneSettings(rehearse=2)).train()
    asked = Shapes(0).batch(1, 2, want=Want(captions=False, families=CURRICULUM[0][2]))
    assert {FAMILIES[family] for family in asked.families.ravel()} <= set(CURRICULUM[0][2]) < set(FAMILIES)
    assert torch.equal(stage.batch(1, 0.0)["answers"], torch.from_numpy(asked.answers).flatten())
    right, answers = torch.eye(4), torch.arange(4)
    stage._advance(1 - right, answers)
    assert int(stage.level) == 0 and float(stage.accuracy) == 0
    for _ in range(100):
        stage._advance(right, answers)
    assert int(stage.level) == len(CURRICULUM) == int(stage.state_dict()["level"])
    assert "rehearsal" in stage.batch(1, 1.0) and "answers" in stage.batch(2, 1.0)
    late = Answers("vqa", **parts, settings=FinetuneSettings(rehearse=0)).train()
    late.batch(0, CURRICULUM[0][1])
    assert int(late.level) == 1


def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path, run_cli) -> None:
    whole = run_cli("train", *ARGUMENTS, "-o", tmp_path / "whole.pt", "--json")
    assert whole.returncode == 0, whole.stderr
    command = [sys.executable, "-m", "simmim_export.training.cli", *ARGUMENTS, "-o", str(tmp_path / "killed.pt")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    state = tmp_path / "killed.pt.trainer"
    while not state.exists():
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed.pt").exists()
    resumed = run_cli("train", *ARGUMENTS, "-o", tmp_path / "killed.pt", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert not state.exists()
    a, b = load(tmp_path / "whole.pt"), load(tmp_path / "killed.pt")
    assert all(torch.equal(a.state[key], b.state[key]) for key in a.state)
    assert a.metrics == b.metrics and b.provenance["steps"] == 12
