"""ViLT as a model family: from a folder of transformers to one graph, its pipeline and its labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simmim_export.errors import CheckpointError, UsageError
from simmim_export.models.family import Graph, LoadOptions, SourceModel
from simmim_export.models.huggingface.architecture import require_architecture
from simmim_export.models.huggingface.folder import CONFIG, Folder, load_weights, open_folder, require_model_type
from simmim_export.models.huggingface.processor_settings import BICUBIC, HALF, processor_settings
from simmim_export.models.tokenizer import check_tokenizer
from simmim_export.spec import Axis, GraphSpec, Kind, Pipeline, TensorSpec, Verb
from simmim_export.system.telemetry import without_telemetry

RETRIEVAL, ANSWERING = "ViltForImageAndTextRetrieval", "ViltForQuestionAnswering"
# The settings of ViltImageProcessor that preprocessor_config.json may leave out.
_DEFAULTS = {
    "resample": BICUBIC,
    "image_mean": HALF,
    "image_std": HALF,
}
# [CLS], a word and [SEP].
_SHORTEST = 3
# 25 x 41 patches: an image of 800 x 1333 pixels, the largest that ViLT was made for.
MOST_PATCHES = 1025
# The characters of a label in a bundle.
_MOST_CHARACTERS = 1024
_OWN_CONFIG = f"give the {CONFIG} that the weights were saved with"


class ViltFamily:
    """ViLT with a list of answers of its own (:data:`ANSWERING`), and for matching (:data:`RETRIEVAL`).

    Its only encoder reads the image and the text together. So an image cannot be encoded once for several questions, and there
    are no embeddings to search by.

    Transformers scales the shorter side of an image to 384 and keeps its shape. A graph has one size, and so has a bundle: an
    image is scaled to ``LoadOptions.image_size``, (height, width), whatever its shape; by default to a square of the size that
    the model was trained with. For images of another shape, export another bundle.
    """

    name = "vilt"

    def recognize(self, path: Path) -> None:
        """Accept a folder whose config.json says ``vilt``."""
        require_model_type(path, {self.name})

    def load(self, path: Path, options: LoadOptions) -> SourceModel:
        """The model at ``path``, for images of ``options.image_size``."""
        folder = open_folder(path, model_types={self.name})
        architecture = require_architecture(folder, supported=(RETRIEVAL, ANSWERING))
        options.refuse(architecture, "attention", "answers")
        answering = architecture == ANSWERING
        labels = labels_of(folder) if answering else ("no", "yes")
        where, settings = _processor_settings(folder)

        with without_telemetry("transformers"):
            import transformers
        from simmim_export.models.huggingface.image_processor import image_processor
        from simmim_export.models.vilt.graph import ViltGraph, YesOrNo

        tokenizer = folder.tokenizer()
        model = load_weights(folder, getattr(transformers, architecture))
        config = model.config
        if (
            type(config.image_size) is not int
            or type(config.patch_size) is not int
            or config.modality_type_vocab_size < 2
        ):
            what = "image_size and patch_size are not whole numbers, or modality_type_vocab_size is not 2 or more"
            raise CheckpointError(what, where=folder.path / CONFIG, fix=_OWN_CONFIG)
        height, width = size = _size(options, config, where=folder.path)
        # Of the file only the size and the padding are not used.
        settings |= {"size": {"height": height, "width": width}, "do_center_crop": False}
        processor = image_processor(settings, where=where)
        check_tokenizer(tokenizer, config.vocab_size, where=folder.path)
        head = model.classifier if answering else YesOrNo(model.rank_output)
        name, task = ("head.vqa", "vqa") if answering else ("head.match", "match")
        inputs = (
            TensorSpec("pixels", "uint8", ("batch", height, width, 3), Kind.IMAGE),
            TensorSpec("input_ids", "int64", ("batch", "sequence"), Kind.TOKEN_IDS),
            TensorSpec("attention_mask", "int64", ("batch", "sequence"), Kind.TEXT_MASK),
        )
        logits = TensorSpec("logits", "float32", ("batch", len(labels)), Kind.LOGITS)
        longest = config.max_position_embeddings
        axes = Axis("batch", 1, options.max_batch), Axis("sequence", _SHORTEST, longest)
        graph = Graph(
            ViltGraph(model.vilt, head, processor, size=size).eval(), GraphSpec(name, inputs, (logits,), axes)
        )
        verb = Verb.ANSWER if answering else Verb.MATCH
        return SourceModel(
            config={
                "preset": architecture,
                "image_size": list(size),
                "patch_size": config.patch_size,
                "layers": config.num_hidden_layers,
                "width": config.hidden_size,
                "vocabulary": config.vocab_size,
            },
            graphs={name: graph},
            pipelines=(Pipeline(str(verb), (name,), ("logits",), verb, task),),
            preprocessing={"image": processor.preprocessing, "text": {"max_length": longest}},
            tokenizer=tokenizer,
            labels={task: labels},
        )


def labels_of(folder: Folder) -> tuple[str, ...]:
    """The answers in the ``id2label`` of config.json, in order.

    Raise :class:`CheckpointError` unless it names the classes 0, 1, 2, ... with a text each. Whether there are as many as logits
    is checked with the weights.
    """
    where = folder.path / CONFIG
    names = folder.config.get("id2label")
    if not isinstance(names, Mapping) or not names:
        raise CheckpointError("config.json names no answers (id2label)", where=where, fix=_OWN_CONFIG)
    missing = [str(index) for index in range(len(names)) if str(index) not in names]
    if missing:
        what = f"id2label has {len(names)} answers, and none for class {missing[0]}"
        raise CheckpointError(what, where=where, fix=_OWN_CONFIG)
    labels = [names[str(index)] for index in range(len(names))]
    for index, label in enumerate(labels):
        if not isinstance(label, str) or not 0 < len(label) <= _MOST_CHARACTERS:
            what = (
                f"the answer of class {index} is not a text of 1 to {_MOST_CHARACTERS:,} characters: {repr(label)[:60]}"
            )
            raise CheckpointError(what, where=where, fix=_OWN_CONFIG)
    return tuple(labels)


def _processor_settings(folder: Folder) -> tuple[Path, dict[str, Any]]:
    """As :func:`processor_settings`. The size must be the shorter side of an image: of ViLT, no other is known."""
    where, settings = processor_settings(folder, {"Vilt": _DEFAULTS})
    size = settings.get("size", 384)
    shorter = size.get("shortest_edge") if isinstance(size, Mapping) else size
    if type(shorter) is not int or shorter < 1:
        what = f"this preprocessing cannot be exported: size is {size!r}, not the shortest edge"
        raise CheckpointError(what, where=where, fix="give the image processor of a ViLT model")
    return where, settings


def _size(options: LoadOptions, config: Any, *, where: Path) -> tuple[int, int]:
    """Height and width in pixels. Raise :class:`UsageError` unless they are whole patches, and not too many of them."""
    patch = config.patch_size
    size = options.image_size or (config.image_size, config.image_size)
    height, width = size
    shown = f"--image-size {height}x{width}"
    if min(size) < patch or height % patch or width % patch:
        what = f"{shown} does not consist of whole patches of {patch} x {patch} pixels"
        raise UsageError(what, where=where, fix=f"give multiples of {patch}, such as {12 * patch}x{16 * patch}")
    patches = (height // patch) * (width // patch)
    # With a positive max_image_length, transformers drops patches at random.
    most = min(MOST_PATCHES, config.max_image_length) if config.max_image_length > 0 else MOST_PATCHES
    if patches > most:
        what = f"{shown} has {patches:,} patches of {patch} x {patch} pixels; the limit of this model is {most:,}"
        raise UsageError(what, where=where, fix=f"give a smaller size, such as {12 * patch}x{16 * patch}")
    return size
