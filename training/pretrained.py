"""Loads pretrained encoders with their own libraries: torchvision for images, Hugging Face for texts.

A path on disk always works. A name is downloaded; if the hub cannot be reached, a single error says so.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

from torch import Tensor
from torchvision.models import get_model_weights

from simmim_export.errors import CheckpointError, InputError, UsageError
from simmim_export.models.files import read_tensors
from simmim_export.models.huggingface.hub import require_on_hub
from simmim_export.models.simmim.encoders import text_positions
from simmim_export.models.tokenizer import check_tokenizer
from simmim_export.system.telemetry import without_telemetry
from simmim_export.training.checks import weights_file
from simmim_export.training.text_folder import FILES, check_text_config, check_text_folder, is_local


class PretrainedText(NamedTuple):
    """A Hugging Face configuration, the text of its tokenizer.json, the encoder's weights without a pooler, and the
    number of tokens that it has positions for (None: any number)."""

    config: dict[str, Any]
    tokenizer: str
    state: dict[str, Tensor]
    positions: int | None


def pretrained_image(trunk: str, weights: str) -> dict[str, Tensor]:
    """The state of torchvision's ResNet ``trunk``, without its classifier.

    ``weights`` is the path of a state dict (.pt, .pth, .safetensors), or one of torchvision's names (DEFAULT,
    IMAGENET1K_V1), which is downloaded unless torch has it cached. Raise :class:`UsageError` for an unknown name,
    :class:`InputError` for a failed download, and :class:`CheckpointError` for a file that is not a state dict.
    """
    path = weights_file(weights)
    if path is not None:
        state = read_tensors(path)
        if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
            fix = "give the state dict of a torchvision ResNet"
            raise InputError("not a state dict (names to tensors)", where=path, fix=fix)
    else:
        state = _download_image(trunk, weights)
    return {key: value for key, value in state.items() if not key.startswith("fc.")}


def _download_image(trunk: str, weights: str) -> dict[str, Tensor]:
    try:
        choices = get_model_weights(trunk)
    except ValueError as error:
        raise UsageError(f"torchvision has no weights for {trunk!r}", fix="give --image-encoder resnet18") from error
    names = [*choices.__members__]
    if weights not in names and weights != "DEFAULT":
        raise UsageError(f"unknown weights {weights!r} of {trunk}", fix=f"choose {', '.join(names)} or give a file")
    try:
        state: dict[str, Tensor] = getattr(choices, weights).get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        what = f"the weights {weights} of {trunk} cannot be downloaded: {error}"
        raise InputError(what, fix="download them elsewhere and give the file: --image-weights FILE.pth") from error
    return state


def pretrained_text(source: str) -> PretrainedText:
    """The encoder in a folder of Hugging Face's layout, or with that name on the hub (or in its cache).

    Raise :class:`InputError` for a folder that does not load or holds something else, and for a hub that cannot be
    reached. Raise :class:`CheckpointError` for weights that do not match the configuration completely, and for a bad
    tokenizer or one that is not the encoder's.
    """
    with without_telemetry("transformers"):
        from transformers import AutoConfig, AutoModel, AutoTokenizer
        from transformers.utils import logging

    folder = Path(source)
    local = is_local(source)
    if local:
        check_text_folder(folder)
    logging.set_verbosity_error()
    try:
        if not local:
            require_on_hub(source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = AutoConfig.from_pretrained(source, local_files_only=local)
            check_text_config(config.to_dict(), source)
            # We name what does not fit below: transformers' own message points to a report that is not shown.
            report = {"output_loading_info": True, "ignore_mismatched_sizes": True}
            model, loading = AutoModel.from_pretrained(source, local_files_only=local, config=config, **report)
            if local:
                tokenizer = (folder / "tokenizer.json").read_text(encoding="utf-8")
            else:
                tokenizer = AutoTokenizer.from_pretrained(source).backend_tokenizer.to_str()
    except InputError:
        raise
    # transformers can raise anything over a damaged file; to the user it means the same.
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if local:
            raise InputError(f"the text encoder does not load: {first}", where=folder, fix=FILES) from error
        what = f"there is no folder {source!r}, and the model hub does not give it either: {first}"
        raise InputError(what, fix=FILES) from error
    finally:
        logging.set_verbosity_warning()
    _check_weights(loading, source)
    where = folder / "tokenizer.json" if local else source
    fix = "give the tokenizer.json that the encoder was trained with"
    check_tokenizer(tokenizer, getattr(config, "vocab_size", None), where=where, fix=fix)
    text = {key: value for key, value in json.loads(config.to_json_string(use_diff=False)).items() if value is not None}
    text = {key: value for key, value in text.items() if not key.startswith("_") and key != "dtype"}
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("pooler.")}
    return PretrainedText(text, tokenizer, state, text_positions(model))


def _check_weights(loading: Mapping[str, Any], source: str) -> None:
    """Raise :class:`CheckpointError` unless the weights match the configuration: transformers fills gaps with random
    numbers. The pooler is not used, and many encoders come without one."""
    odd = {key: f"missing: {key}" for key in loading["missing_keys"]}
    for key, own, wanted in loading["mismatched_keys"]:
        odd[key] = f"misshapen: {key} is {list(own)}, the configuration says {list(wanted)}"
    problems = [odd[key] for key in sorted(odd) if not key.startswith("pooler.")]
    if problems:
        shown = "\n  ".join(problems[:20]) + (f"\n  ... and {len(problems) - 20} more" if len(problems) > 20 else "")
        what = f"the text encoder's weights do not fit its config.json:\n  {shown}"
        raise CheckpointError(what, where=source, fix="copy the folder again, whole; nothing is loaded in part")
