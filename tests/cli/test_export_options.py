"""The options of ``simmim-export onnx`` for models of other makers: what is refused before PyTorch is loaded, what arrives."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from simmim_export.cli.export import onnx
from simmim_export.cli.lower import LowerOptions
from simmim_export.errors import CheckpointError, DataError, SimmimError, UsageError
from simmim_export.export.limits import parse_image_size


@pytest.mark.parametrize(
    "text",
    ["", "384", "384x", "x512", "0x32", "32x0", "-1x5", "384X512", "5000x32", "3.5x4", "384x512x3", "٣x٣", "384x512\n"],
)
def test_a_bad_image_size_is_an_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_image_size(text)


def test_an_image_size_is_height_and_width() -> None:
    assert parse_image_size("384x512") == (384, 512) and parse_image_size("1x4096") == (1, 4096)


@pytest.mark.parametrize(
    ("options", "error", "where"),
    [
        ({"answers": "{tmp}/none"}, DataError, "{tmp}/none"),
        ({"answers": "{tmp}/empty"}, DataError, "{tmp}/empty"),
        ({"answers": "{tmp}/twice"}, DataError, "{tmp}/twice:2"),
        ({"image_size": "384"}, UsageError, None),
        ({"family": "llava"}, UsageError, None),
        ({"model": "{tmp}/llava"}, CheckpointError, "{tmp}/llava"),
        ({"model": "{tmp}/broken"}, CheckpointError, "{tmp}/broken/config.json"),
        ({"model": "{tmp}/bare"}, CheckpointError, "{tmp}/bare/config.json"),
        ({"model": "{tmp}/none"}, CheckpointError, "{tmp}/none"),
    ],
)
def test_what_cannot_be_exported_is_an_error(
    tmp_path: Path, options: dict[str, str], error: type[SimmimError], where: str | None
) -> None:
    for name, content in {"empty": "", "twice": "red\nred\n", "ckpt.pt": ""}.items():
        (tmp_path / name).write_text(content)
    for name, config in {"llava": '{"model_type": "llava"}', "broken": "{", "bare": "{}"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config)
    given = {"model": str(tmp_path / "ckpt.pt")} | {key: text.format(tmp=tmp_path) for key, text in options.items()}
    if "answers" in given:
        given["answers"] = Path(given["answers"])
    with pytest.raises(error) as caught:
        onnx(LowerOptions(), **given, output=tmp_path / "out")
    assert caught.value.where == (where and where.format(tmp=tmp_path)) and caught.value.fix
    assert not (tmp_path / "out").exists()


def test_an_unsupported_model_is_named_beside_what_is_supported(tmp_path: Path) -> None:
    config = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as caught:
        onnx(LowerOptions(), str(tmp_path), output=tmp_path / "out")
    assert "'llava'" in caught.value.what and "LlavaForConditionalGeneration" in caught.value.what
    assert "simmim" in str(caught.value.fix)


def test_the_refusal_does_not_wait_for_pytorch(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    code = (
        "import sys\nfrom simmim_export.cli import main\n"
        f"sys.argv = ['simmim-export', 'onnx', {str(tmp_path)!r}]\n"
        "try: main()\n"
        "except SystemExit as ended: print(ended.code, *sys.modules.keys() & {'torch', 'huggingface_hub'})"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == ["5"], done.stderr


@pytest.mark.parametrize("option", [("--answers", "{answers}"), ("--image-size", "64x64")])
def test_options_reach_the_family(run_cli, tiny_checkpoint: Path, tmp_path: Path, option: tuple[str, str]) -> None:
    """That of simmim-train refuses them, because its models have no use for them."""
    (tmp_path / "answers").write_text("red\nblue\n")
    words = [word.format(answers=tmp_path / "answers") for word in option]
    done = run_cli("export", "onnx", tiny_checkpoint, "-o", tmp_path / "out", "--family", "simmim", *words)
    assert done.returncode == 2 and option[0] in done.stderr and not (tmp_path / "out").exists(), done.stderr
