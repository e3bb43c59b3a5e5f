"""BLIP as a model family: from a folder of transformers to graphs, pipelines and labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simmim_export.errors import CheckpointError, UsageError
from simmim_export.models.blip.prefixes import Prefixes, check_size, tokens_of
from simmim_export.models.family import Graph, LoadOptions, SourceModel
from simmim_export.models.huggingface.architecture import require_architecture
from simmim_export.models.huggingface.folder import CONFIG, Folder, load_weights, open_folder, require_model_type
from simmim_export.models.huggingface.processor_settings import BICUBIC, CLIP_MEAN, CLIP_STD, processor_settings
from simmim_export.models.huggingface.two_towers import PIPELINES
from simmim_export.models.tokenizer import check_tokenizer
from simmim_export.spec import Axis, GraphSpec, Kind, Pipeline, TensorSpec, Verb
from simmim_export.system.telemetry import without_telemetry

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import nn

    from simmim_export.models.huggingface.image_processor import ImageProcessor

RETRIEVAL, ANSWERING = "BlipForImageTextRetrieval", "BlipForQuestionAnswering"
# The settings of BlipImageProcessor that preprocessor_config.json may leave out.
_DEFAULTS = {
    "size": {"height": 384, "width": 384},
    "resample": BICUBIC,
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
}
# [CLS], a word and [SEP].
_SHORTEST = 3
# The most tokens of a text. BLIP was trained with 20 to 40; its positions, 512, would make every check of an export take minutes.
_LONGEST = 64


class BlipFamily:
    """BLIP for matching (:data:`RETRIEVAL`) and for ranking given answers to a question (:data:`ANSWERING`).

    Matching has no similarity: transformers leaves out the temperature of BLIP's embeddings. Its score is the probability that
    the head for matching gives, and the image is encoded once for all texts.

    For answering, ``LoadOptions.answers`` is the list. The image and the question are encoded once, and the decoder reads every
    different beginning of an answer once (:class:`simmim_export.models.blip.prefixes.Prefixes`). Its log-probabilities fill
    beginnings x vocabulary numbers for each question, which limits the list
    (:func:`simmim_export.models.blip.prefixes.check_size`): with BLIP's vocabulary, the 3,129 answers of VQA v2 need
    ``--max-batch 2``.
    """

    name = "blip"

    def recognize(self, path: Path) -> None:
        """Accept a folder whose config.json says ``blip``."""
        require_model_type(path, {self.name})

    def load(self, path: Path, options: LoadOptions) -> SourceModel:
        """The model at ``path``. Raise :class:`TextError` for an answer that cannot be ranked."""
        folder = open_folder(path, model_types={self.name})
        architecture = require_architecture(folder, supported=(RETRIEVAL, ANSWERING))
        options.refuse(architecture, "attention", "image_size")
        if architecture == RETRIEVAL:
            options.refuse(architecture, "answers")
            return _retrieval(folder, options)
        if not options.answers:
            what = f"{architecture} ranks answers that it is given, and none are"
            raise UsageError(what, where=path, fix="add --answers FILE, with one answer in each line")
        return _answering(folder, options)


def _retrieval(folder: Folder, options: LoadOptions) -> SourceModel:
    with without_telemetry("transformers"):
        from transformers import BlipForImageTextRetrieval

    from simmim_export.models.blip.graphs import ImageEncoderGraph, MatchGraph, TextEncoderGraph

    parts = _Parts.of(folder, BlipForImageTextRetrieval, options)
    model, tensors = parts.model, parts.tensors
    channels = ("batch", model.config.image_text_hidden_size)
    image_embed, text_embed = (
        TensorSpec(name, "float32", channels, Kind.EMBEDDING) for name in ("image_embed", "text_embed")
    )
    logits = TensorSpec("logits", "float32", ("batch", 2), Kind.LOGITS)
    return parts.source(
        {
            "image_encoder": (
                ImageEncoderGraph(model.vision_model, parts.processor, projection=model.vision_proj),
                (tensors.pixels,),
                (tensors.image_tokens, image_embed),
            ),
            "text_encoder": (TextEncoderGraph(model.text_encoder, model.text_proj), tensors.text, (text_embed,)),
            "head.match": (
                MatchGraph(model.text_encoder, model.itm_head),
                (tensors.shared_image, *tensors.text),
                (logits,),
            ),
        },
        *PIPELINES,
        Pipeline("match", ("image_encoder", "head.match"), ("logits",), Verb.MATCH, "match"),
        labels={"match": ("no", "yes")},
    )


def _answering(folder: Folder, options: LoadOptions) -> SourceModel:
    with without_telemetry("transformers"):
        from transformers import BlipForQuestionAnswering

    from simmim_export.models.blip.graphs import ImageEncoderGraph, QuestionEncoderGraph, RankGraph

    parts = _Parts.of(folder, BlipForQuestionAnswering, options)
    model, tensors, text = parts.model, parts.tensors, parts.model.config.text_config
    if text.hidden_size != text.encoder_hidden_size:
        # Transformers gives the decoder the width of the image, and then the states of the question.
        what = f"the decoder takes a width of {text.encoder_hidden_size}, and the question has {text.hidden_size}"
        raise CheckpointError(what, where=folder.path / CONFIG, fix="give a model that runs in transformers")
    answers = tokens_of(options.answers, parts.tokenizer, longest=text.max_position_embeddings)
    prefixes = Prefixes.of(answers, begin=text.bos_token_id, end=text.sep_token_id)
    check_size(prefixes, max_batch=options.max_batch, vocabulary=text.vocab_size, heads=text.num_attention_heads)
    states = TensorSpec("question_states", "float32", ("batch", "sequence", text.hidden_size))
    logits = TensorSpec("logits", "float32", ("batch", len(answers)), Kind.LOGITS)
    return parts.source(
        {
            "image_encoder": (
                ImageEncoderGraph(model.vision_model, parts.processor),
                (tensors.pixels,),
                (tensors.image_tokens,),
            ),
            "question_encoder": (
                QuestionEncoderGraph(model.text_encoder),
                (tensors.shared_image, *tensors.text),
                (states,),
            ),
            "head.vqa": (RankGraph(model.text_decoder, prefixes), (states, tensors.text[1]), (logits,)),
        },
        Pipeline("answer", ("image_encoder", "question_encoder", "head.vqa"), ("logits",), Verb.ANSWER, "vqa"),
        labels={"vqa": options.answers},
    )


@dataclass(frozen=True, kw_only=True)
class _Tensors:
    """The tensors that both architectures have. ``text`` is the ids and the mask."""

    pixels: TensorSpec
    image_tokens: TensorSpec
    shared_image: TensorSpec
    text: tuple[TensorSpec, TensorSpec]


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What both architectures consist of, checked against each other."""

    model: Any
    processor: ImageProcessor
    tokenizer: Tokenizer
    tokenizer_json: str
    tensors: _Tensors
    axes: tuple[Axis, Axis]

    @classmethod
    def of(cls, folder: Folder, architecture: Any, options: LoadOptions) -> _Parts:
        """Load ``folder``. Raise :class:`CheckpointError` for parts that do not fit each other."""
        from simmim_export.models.huggingface.image_processor import image_processor

        at, settings = processor_settings(folder, {"Blip": _DEFAULTS})
        processor, tokenizer_json = image_processor(settings, where=at), folder.tokenizer()
        model = load_weights(folder, architecture)
        text, vision = model.config.text_config, model.config.vision_config
        where = folder.path / CONFIG
        if not text.is_decoder:
            what = "text_config.is_decoder is false: the text encoder cannot read an image"
            raise CheckpointError(what, where=where, fix="give the config.json that the weights were saved with")
        for name in ("bos_token_id", "sep_token_id"):
            index = getattr(text, name)
            if type(index) is not int or not 0 <= index < text.vocab_size:
                what = f"text_config.{name} is {index!r}, and the vocabulary has {text.vocab_size} tokens"
                raise CheckpointError(what, where=where, fix="give the config.json that the weights were saved with")
        size, side = processor.preprocessing, vision.image_size
        if (size["height"], size["width"]) != (side, side):
            what = f"images are scaled to {size['height']} x {size['width']}, and the model takes {side} x {side}"
            raise CheckpointError(what, where=at, fix="give the image processor of this model")
        tokenizer = check_tokenizer(tokenizer_json, text.vocab_size, where=folder.path)
        tokens = ("batch", (side // vision.patch_size) ** 2 + 1, vision.hidden_size)
        image_tokens = TensorSpec("image_tokens", "float32", tokens)
        ids, mask = (
            TensorSpec(name, "int64", ("batch", "sequence"), kind)
            for name, kind in (("input_ids", Kind.TOKEN_IDS), ("attention_mask", Kind.TEXT_MASK))
        )
        tensors = _Tensors(
            pixels=TensorSpec("pixels", "uint8", ("batch", side, side, 3), Kind.IMAGE),
            image_tokens=image_tokens,
            shared_image=replace(image_tokens, shared=True),
            text=(ids, mask),
        )
        axes = (
            Axis("batch", 1, options.max_batch),
            Axis("sequence", _SHORTEST, min(_LONGEST, text.max_position_embeddings)),
        )
        return cls(
            model=model,
            processor=processor,
            tokenizer=tokenizer,
            tokenizer_json=tokenizer_json,
            tensors=tensors,
            axes=axes,
        )

    def source(
        self,
        graphs: Mapping[str, tuple[nn.Module, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]],
        *pipelines: Pipeline,
        labels: Mapping[str, tuple[str, ...]],
    ) -> SourceModel:
        """The model with ``graphs``, each a module with its inputs and outputs."""
        specs = {}
        for name, (module, inputs, outputs) in graphs.items():
            axes = [axis for axis in self.axes if any(axis.name in tensor.shape for tensor in inputs)]
            specs[name] = Graph(module.eval(), GraphSpec(name, inputs, outputs, tuple(axes)))
        config = self.model.config
        return SourceModel(
            config={
                "preset": type(self.model).__name__,
                "image_size": config.vision_config.image_size,
                "patch_size": config.vision_config.patch_size,
                "image_layers": config.vision_config.num_hidden_layers,
                "image_width": config.vision_config.hidden_size,
                "text_layers": config.text_config.num_hidden_layers,
                "text_width": config.text_config.hidden_size,
                "vocabulary": config.text_config.vocab_size,
            },
            graphs=specs,
            pipelines=pipelines,
            preprocessing={
                "image": self.processor.preprocessing,
                "text": {"max_length": self.axes[1].maximum},
            },
            tokenizer=self.tokenizer_json,
            labels=labels,
        )
