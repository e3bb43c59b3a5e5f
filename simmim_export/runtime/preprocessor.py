"""Pictures, clips and texts to the tensors that a bundle's graphs take, under the names of its manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from threading import Lock

import numpy as np

from simmim_export.bundle import Bundle
from simmim_export.bundle.opened import MOST_BYTES
from simmim_export.errors import BundleError, UsageError
from simmim_export.runtime.clips import choose_frames
from simmim_export.runtime.images import ImagePreprocessing, ImageSource, decoded, load_pixels, stacked
from simmim_export.runtime.inputs import Tensors, picture_list, second_axis, text_list
from simmim_export.runtime.text import Tokenizer
from simmim_export.spec import Kind, fed_tensors
from simmim_export.system.files import read_file, reading


class Preprocessor:
    """Decodes, resizes and tokenizes as the manifest of ``bundle`` says, each call in up to ``threads`` threads. Threads may
    share it."""

    def __init__(self, bundle: Bundle, *, threads: int) -> None:
        self._bundle, self._manifest, self._threads = bundle, bundle.manifest, threads
        self._names = {kind: tensor.name for kind, tensor in fed_tensors(self._manifest.graphs).items()}
        self._images = ImagePreprocessing.from_json(self._manifest.preprocessing["image"])
        self._opening = Lock()
        self._tokenizer: Tokenizer | None = None

    def pixels(self, images: Sequence[ImageSource]) -> np.ndarray:
        """uint8 [n, height, width, 3]; raise :class:`ImageError` for one that cannot be read."""
        return load_pixels(picture_list("pixels", images), self._images, threads=self._threads)

    def decoded(
        self, images: Sequence[ImageSource], *, ahead: int
    ) -> AbstractContextManager[Iterator[Callable[[], np.ndarray]]]:
        """See :func:`simmim_export.runtime.images.decoded`."""
        return decoded(images, self._images, threads=self._threads, ahead=ahead)

    def image(self, image: ImageSource) -> Tensors:
        """One image, by the name of its tensor."""
        with self.image_batches([image], step=1) as batches:
            return next(batches)

    @contextmanager
    def image_batches(self, images: Sequence[ImageSource], *, step: int) -> Iterator[Iterator[Tensors]]:
        """At most ``step`` images each, by the name of their tensor. While the caller works on one batch, the next is decoded."""
        if Kind.IMAGE not in self._names:
            raise UsageError("this bundle reads no images", where=self._bundle.root, fix="give it texts alone")
        name, counts = self._names[Kind.IMAGE], (min(step, len(images) - at) for at in range(0, len(images), step))
        with self.decoded(images, ahead=step) as attempts:
            yield ({name: stacked(attempts, self._images, count=count)} for count in counts)

    @property
    def stacked(self) -> str:
        """The tensor that is stacked over the frames of a clip; raise :class:`UsageError` for a bundle without clips."""
        if not self._manifest.stacked or Kind.FRAMES not in self._names:
            fix = "give it single images, or export a model that was trained on clips"
            raise UsageError("this bundle takes images, not clips", where=self._bundle.root, fix=fix)
        return self._manifest.stacked

    def frames(self, frames: Sequence[ImageSource]) -> Sequence[ImageSource]:
        """``frames``, or as many of them as the graphs take; see :func:`choose_frames`."""
        least, most = second_axis(self._manifest.graphs, Kind.FRAMES)
        return choose_frames(picture_list("encode_clip", frames, noun="frame", least=0), least=least, most=most)

    def clip(self, outputs: np.ndarray) -> Tensors:
        """A clip by the names of its tensors. ``outputs`` [frames, ...] is the tensor :attr:`stacked` of its frames."""
        mask = np.ones((1, len(outputs)), np.int64)
        clip = {Kind.FRAMES: outputs[None], Kind.FRAME_MASK: mask}
        return {self._names[kind]: array for kind, array in clip.items() if kind in self._names}

    def tokens(self, texts: Sequence[str], *, first: int, warn: bool) -> Tensors:
        """See :meth:`simmim_export.runtime.model.Model.tokens`."""
        sequence = text_list("tokens", texts)
        if Kind.TOKEN_IDS not in self._names:
            raise UsageError("this bundle reads no texts", where=self._bundle.root, fix="give it images alone")
        tokenizer = self._tokenizer or self._open_tokenizer()
        return tokenizer.feeds(sequence, first=first, warn=warn)

    def text_batches(self, texts: Sequence[str], *, step: int) -> list[Tensors]:
        """At most ``step`` texts each, by the names of their tensors. All are made before the first one runs, so that an unusable
        text costs no work."""
        return [self.tokens(texts[at : at + step], first=at, warn=True) for at in range(0, len(texts), step)]

    def words_of(self, tokens: Tensors) -> np.ndarray:
        """Which positions of the first row of ``tokens`` hold a token, and not padding: bool [sequence]."""
        if Kind.TEXT_MASK in self._names:
            return tokens[self._names[Kind.TEXT_MASK]][0] == 1
        return np.ones(tokens[self._names[Kind.TOKEN_IDS]].shape[1], bool)

    def _open_tokenizer(self) -> Tokenizer:
        with self._opening:
            if self._tokenizer is None:
                path = self._bundle.file("tokenizer.json")
                try:
                    with reading(path, BundleError):
                        source = read_file(path, most=MOST_BYTES["tokenizer.json"]).decode("utf-8")
                except ValueError as error:
                    what = f"tokenizer.json cannot be read: {error}"
                    raise BundleError(what, where=path, fix="export the bundle again") from error
                max_length = self._manifest.preprocessing["text"]["max_length"]
                self._tokenizer = Tokenizer(source, max_length, graphs=self._manifest.graphs)
            return self._tokenizer
