"""Reads a folder that transformers saved: its config.json, its tokenizer, and its weights. Nothing in it is executed.

PyTorch and transformers are imported where they are used, so that a path can be checked before.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from simmim_export.errors import CheckpointError
from simmim_export.models.files import COPY_AGAIN, PICKLED
from simmim_export.system.files import parse_json, read_file
from simmim_export.system.telemetry import without_telemetry

if TYPE_CHECKING:
    from torch import nn

    Module = TypeVar("Module", bound=nn.Module)

CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"
# Version 5 of transformers saves the settings of a processor's parts in this one file.
PROCESSORS = "processor_config.json"
TOKENIZER = "tokenizer.json"
# The files that may hold the weights, in the order in which transformers looks for them.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# How safetensors may store the weights.
FLOATS = ("F64", "F32", "F16", "BF16")
# The most bytes of a JSON file. CLIP's tokenizer.json has 2 MB, Gemma's 33.
MOST_JSON = 64 << 20
# The most layers of a tower. CLIP's largest have 48.
MOST_LAYERS = 256
_FILES = f"give a folder with {CONFIG}, {PROCESSOR}, {TOKENIZER} and model.safetensors, as save_pretrained writes it"
# How many problems one message lists.
_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder in the layout of transformers: its path, and the content of its config.json."""

    path: Path
    config: Mapping[str, Any]

    @property
    def model_type(self) -> str:
        """The ``model_type`` of config.json: ``clip``, ``siglip``, ..."""
        return str(self.config.get("model_type", ""))

    @property
    def architecture(self) -> str:
        """The first of the ``architectures`` of config.json: ``CLIPModel``, ...; empty if it names none."""
        names = self.config.get("architectures")
        return str(names[0]) if isinstance(names, list) and names else ""

    def read_json(self, name: str) -> dict[str, Any]:
        """The object in the JSON file ``name``. Raise :class:`CheckpointError` for a file that is missing, is not JSON, or does
        not hold an object."""
        return _object(self.path / name)

    def image_settings(self) -> tuple[Path, dict[str, Any]]:
        """The settings of the image processor, and the file that holds them: processor_config.json with its ``image_processor``,
        which transformers prefers, or preprocessor_config.json.

        Raise :class:`CheckpointError` if the folder has neither.
        """
        if (self.path / PROCESSORS).is_file():
            nested = self.read_json(PROCESSORS).get("image_processor")
            if isinstance(nested, dict):
                return self.path / PROCESSORS, nested
        if not (self.path / PROCESSOR).is_file():
            what = f"the folder has no image processor: no {PROCESSOR}, and no image_processor in {PROCESSORS}"
            raise CheckpointError(what, where=self.path, fix=_save("AutoImageProcessor", "the image processor"))
        return self.path / PROCESSOR, self.read_json(PROCESSOR)

    def tokenizer(self) -> str:
        """The text of the folder's tokenizer.json.

        A folder with only an older vocabulary (vocab.txt, or vocab.json with merges.txt) is converted by transformers. Raise
        :class:`CheckpointError` if there is no tokenizer, or if it cannot be converted.
        """
        path = self.path / TOKENIZER
        if path.is_file():
            try:
                return read_file(path, most=MOST_JSON).decode("utf-8")
            except (OSError, ValueError) as error:
                raise CheckpointError(f"tokenizer.json cannot be read: {error}", where=path, fix=COPY_AGAIN) from error
        if not any((self.path / name).is_file() for name in ("vocab.txt", "vocab.json")):
            what = f"the folder has no tokenizer: no {TOKENIZER}, vocab.txt or vocab.json"
            raise CheckpointError(what, where=self.path, fix=_save("AutoTokenizer", "the tokenizer"))
        with _transformers(self.path, "the tokenizer"):
            with without_telemetry("transformers"):
                from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(self.path, local_files_only=True, trust_remote_code=False)
            return str(tokenizer.backend_tokenizer.to_str())


def model_type(path: Path) -> str | None:
    """The ``model_type`` in the config.json of the folder ``path``; None if it is not such a folder.

    It is empty for a config.json that cannot be read or has no model_type: :func:`open_folder` says what is wrong.
    """
    if not (path / CONFIG).is_file():
        return None
    try:
        return str(_object(path / CONFIG).get("model_type", ""))
    except CheckpointError:
        return ""


def require_model_type(path: Path, model_types: Collection[str]) -> None:
    """Raise :class:`CheckpointError` unless ``path`` is a folder whose config.json has one of ``model_types``: what
    :meth:`simmim_export.models.family.ModelFamily.recognize` asks. Whatever else is wrong is for :func:`open_folder` to say."""
    if model_type(path) not in model_types:
        named = " or ".join(map(repr, sorted(model_types)))
        raise CheckpointError(f"not a folder with a model of the type {named}", where=path, fix=_FILES)


def open_folder(path: Path, *, model_types: Collection[str]) -> Folder:
    """The folder at ``path``, whose config.json has one of ``model_types``.

    Raise :class:`CheckpointError` for anything else, and for a model that comes with code of its own.
    """
    if not (path / CONFIG).is_file():
        raise CheckpointError(f"not a folder with a {CONFIG}", where=path, fix=_FILES)
    config = _object(path / CONFIG)
    folder = Folder(path=path, config=config)
    if folder.model_type not in model_types:
        what = f"the model_type is {folder.model_type!r}, not {' or '.join(map(repr, sorted(model_types)))}"
        raise CheckpointError(what, where=path / CONFIG, fix="leave out --family")
    if "auto_map" in config:
        what = "config.json asks for code from the folder (auto_map), which is never executed"
        fix = "give the model in the layout of transformers itself, without auto_map"
        raise CheckpointError(what, where=path / CONFIG, fix=fix)
    return folder


def unsupported(path: Path, *, families: Iterable[str]) -> CheckpointError:
    """The error for a folder of transformers that no family recognizes: what it holds, and what is supported."""
    try:
        folder = Folder(path=path, config=_object(path / CONFIG))
    except CheckpointError as error:
        return error
    if not folder.model_type:
        return CheckpointError(f"{CONFIG} has no model_type", where=path / CONFIG, fix=_FILES)
    named = f"{folder.model_type!r}" + (f" ({folder.architecture})" if folder.architecture else "")
    return CheckpointError(
        f"models of the type {named} cannot be exported",
        where=path,
        fix=f"give a model of one of these families: {', '.join(families)} (docs/models.md lists their types)",
    )


def load_weights(folder: Folder, model: type[Module], *, ignored: Collection[str] = ()) -> Module:
    """A ``model`` of transformers with the configuration and the weights of ``folder``: in eval mode, in FP32, with attention
    computed eagerly.

    Names of weights that start with one of ``ignored`` may be missing or be there in vain. Raise :class:`CheckpointError` for
    weights that are missing, damaged, hold code, are not finite, or are not those that config.json describes; transformers itself
    would fill gaps with random numbers.
    """
    import torch

    if not any((folder.path / name).is_file() for name in WEIGHTS):
        what = f"the folder has no weights: none of {', '.join(WEIGHTS)}"
        raise CheckpointError(what, where=folder.path, fix=_FILES)
    _require_floats(folder)
    _require_room(folder, model)
    with _transformers(folder.path, "the model"):
        loaded, report = model.from_pretrained(  # type: ignore[attr-defined]
            folder.path,
            local_files_only=True,
            trust_remote_code=False,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
            # Named below: transformers' own message points to a report that is not shown.
            ignore_mismatched_sizes=True,
        )
    _require_all(report, folder, ignored=tuple(ignored))
    for name, tensor in loaded.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            what = f"{name} holds {bad} NaN or Inf values of {tensor.numel()}"
            raise CheckpointError(what, where=folder.path, fix="give weights that are numbers")
    return loaded.eval()


def _require_room(folder: Folder, model: type[nn.Module]) -> None:
    """Raise :class:`CheckpointError` for a configuration of many more weights than the files hold: transformers would allocate
    them, and only then compare."""
    import torch

    for name, value in _numbers(folder.config):
        if "layers" in name and value > MOST_LAYERS:
            what = f"{name} is {value:,}; the limit is {MOST_LAYERS}"
            raise CheckpointError(what, where=folder.path / CONFIG, fix=COPY_AGAIN)
    with _transformers(folder.path, "the model"), torch.device("meta"):
        config = model.config_class.from_pretrained(folder.path, local_files_only=True)  # type: ignore[attr-defined]
        weights = sum(parameter.numel() for parameter in model(config).parameters())
    files = (file for suffix in ("safetensors", "bin") for file in folder.path.glob(f"*.{suffix}"))
    # A link to nowhere is not a file: an incomplete copy of the hub's cache has some.
    stored = sum(file.stat().st_size for file in files if file.is_file())
    if weights > stored:  # a weight has a byte or more
        what = f"{CONFIG} describes {weights:,} weights, and the files of weights have {stored:,} bytes"
        raise CheckpointError(what, where=folder.path, fix="copy the folder again, whole")


def _require_floats(folder: Folder) -> None:
    """Raise :class:`CheckpointError` unless the weights in safetensors files are real floats: transformers would convert
    quantized ones without their scales, and drop an imaginary part."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.path.glob("*.safetensors")):
        if not path.is_file():
            continue
        try:
            with safe_open(path, "pt") as file:
                formats = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - not a dict
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"the weights do not load: {error}", where=path, fix=COPY_AGAIN) from error
        for name, kind in formats.items():
            # Counters, such as position_ids, are integers of 64 bits.
            if kind not in FLOATS and kind != "I64":
                what = f"{name} is stored as {kind}; only {', '.join(FLOATS)} can be exported"
                raise CheckpointError(what, where=path, fix="give the weights before they were quantized")


def _numbers(content: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """The integers in a configuration and in those that it holds, by their names."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif isinstance(value, int):
            yield name, value


def _require_all(report: Mapping[str, Any], folder: Folder, *, ignored: tuple[str, ...]) -> None:
    """Raise :class:`CheckpointError` unless every weight of the model was loaded, and no other was there."""
    odd = {key: f"missing: {key}" for key in report["missing_keys"]}
    odd |= {key: f"unexpected: {key}" for key in report["unexpected_keys"]}
    for key, own, wanted in report["mismatched_keys"]:
        odd[key] = f"misshapen: {key} is {list(own)}, the configuration says {list(wanted)}"
    # Older versions of transformers saved this constant with the weights.
    problems = [odd[key] for key in sorted(odd) if not key.startswith(ignored) and not key.endswith("position_ids")]
    if problems:
        more = f"\n  ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        what = f"the weights do not fit {CONFIG}:\n  " + "\n  ".join(problems[:_SHOWN]) + more
        raise CheckpointError(what, where=folder.path, fix="copy the folder again, whole; nothing is loaded in part")


@contextmanager
def _transformers(where: Path, what: str) -> Iterator[None]:
    """For a block that calls transformers: quietly, and whatever it raises is a :class:`CheckpointError`. Over a damaged file it
    can raise anything."""
    with without_telemetry("transformers"):
        from transformers.utils import logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        if "Weights only load failed" in str(error):  # torch goes on to say how to execute the code
            raise CheckpointError(PICKLED, where=where, fix="give the weights as .safetensors") from error
        lines = str(error).strip().splitlines()
        first = lines[0] if lines else type(error).__name__
        raise CheckpointError(f"{what} does not load: {first}", where=where, fix=COPY_AGAIN) from error
    finally:
        logging.set_verbosity(verbosity)


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"the folder has no {path.name}", where=path.parent, fix=_FILES)
    try:
        content = parse_json(read_file(path, most=MOST_JSON).decode("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path.name} cannot be read: {error}", where=path, fix=COPY_AGAIN) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} does not hold an object", where=path, fix=COPY_AGAIN)
    return content


def _save(kind: str, what: str) -> str:
    return f"save {what} beside the weights: {kind}.from_pretrained(NAME).save_pretrained(FOLDER)"
