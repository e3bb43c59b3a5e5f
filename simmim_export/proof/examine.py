"""Every example of the evidence through sessions, and what became of the answers.

Outputs are kept by what made them, so that examining a model of which one graph was changed costs that graph and what follows
it. What sessions return is judged as it is: a wrong shape is an error, and what is not finite is counted in the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from simmim_export.bundle import Bundle, Manifest
from simmim_export.engines.base import Session
from simmim_export.errors import BundleError, GateFailed
from simmim_export.proof.evidence import FILE, RETRIEVAL, Evidence, Task
from simmim_export.proof.figures import agreement, choices, first_choices, gallery, paired_loss
from simmim_export.proof.fitting import require_fit
from simmim_export.proof.parity import difference, logits_error
from simmim_export.spec import TOLERANCES, Precision

Tensors = dict[str, np.ndarray]
Watch = Callable[[str, int, int], None]
TEXTS = "text_embed"
# What a tensor has a row for: each image, each distinct text, each question about an image.
IMAGES, WORDS, PAIRS = "image", "text", "pair"
# The name of the line that says whether FP32 gives the references.
REFERENCES = "references"
# The least share of FP32's answers that must be those of the references. On honest references every answer is the same unless two
# classes are equal to within a rounding: of a thousand questions that happens to less than one, also before any training.
SAME_ANSWERS = 0.999


def _still(step: str, done: int, total: int) -> None:
    """The progress of a caller who does not watch."""


def require_evidence(bundle: Bundle) -> Evidence:
    """What travels with ``bundle``, checked against its manifest.

    Raise :class:`BundleError` if there is none, or it is damaged, not finite, or about another model.
    """
    if FILE not in bundle.manifest.files:
        raise BundleError("the bundle holds no evidence", where=bundle.root, fix="export it again with this version")
    path = bundle.file(FILE)
    return require_fit(Evidence.load(path), bundle.manifest, path)


def graphs_behind(manifest: Manifest, output: str) -> tuple[str, ...]:
    """The graphs that make ``output``, a name of :meth:`Examiner.outputs`, in order."""
    kind, _, name = output.partition("/")
    if kind == TEXTS:
        return ("text_encoder",)
    if kind == "images":
        return ("image_encoder",)
    graphs = next(p.graphs for p in manifest.pipelines if p.graphs[-1] == f"head.{name}")
    # Of clips the image encoder is in no pipeline: the host takes their frames through it.
    return tuple(dict.fromkeys(("image_encoder", *graphs)))


def reproduction(manifest: Manifest, figures: Mapping[str, Any], exact: Collection[str]) -> dict[str, Any] | None:
    """A line, as of a budget: do graphs at FP32 give the references that the evidence holds?

    ``exact`` names the graphs that ran at FP32. Outputs of other graphs are not looked at; if there are no others, the result is
    None. ``found`` is the worst scaled error divided by the number of graphs behind the output, and ``allowed`` the tolerance of
    FP32 for one graph. The line also fails if embeddings point elsewhere, or if less than :data:`SAME_ANSWERS` of a task's
    answers are those of its references. References that fail were altered, or are those of another model: every loss against them
    is meaningless.
    """
    errors, wrong, tolerance = {}, "", TOLERANCES[Precision.FP32]
    for output, row in figures["references"].items():
        graphs = graphs_behind(manifest, output)
        if not set(graphs) <= set(exact):
            continue
        errors[output] = row["scaled_error"] / len(graphs)
        kind, _, task = output.partition("/")
        if kind == "logits":
            same = figures["tasks"][task]["top1"]
            if same < SAME_ANSWERS:
                wrong = wrong or f"{same:.1%} of the answers of {task} at FP32 are those of the references"
        elif row["cosine"] < tolerance.cosine:
            wrong = wrong or f"the cosine of {output} at FP32 to its reference is {row['cosine']:.6f}"
    if not errors:
        return None
    worst, limit = max(errors, key=lambda output: errors[output]), tolerance.scaled_error
    if not errors[worst] <= limit:
        wrong = f"FP32 does not give the reference of {worst}"
    reason = f"{wrong}: the evidence is wrong, or FP32 is" if wrong else ""
    allowed = f"at most {limit:g}"
    return {"name": REFERENCES, "found": errors[worst], "allowed": allowed, "kept": not wrong, "reason": reason}


def suspicions(figures: Mapping[str, Any]) -> list[str]:
    """A remark for every task on which a model is better than the reference by more than chance
    (:func:`~simmim_export.proof.figures.paired_loss`)."""
    return [
        f"suspicious: {name} is {-row['loss']:.2f} points better than PyTorch's FP32 ({row['gained']} images better, "
        f"{row['lost']} worse): are the references right?"
        for name, row in figures["tasks"].items()
        if row["suspicious"]
    ]


class Examiner:
    """``tokens`` turns texts to ``input_ids`` and ``attention_mask``, int64 [n, s], as the runtime does; ``batch`` rows are
    asked at once, by default as many as a graph takes."""

    def __init__(
        self,
        manifest: Manifest,
        evidence: Evidence,
        tokens: Callable[[list[str]], Tensors],
        watch: Watch = _still,
        batch: int | None = None,
    ) -> None:
        self.manifest, self.evidence, self._watch, self._batch = manifest, evidence, watch, batch
        self._texts = evidence.texts()
        self._number = {text: index for index, text in enumerate(self._texts)}
        self._tokens = tokens(self._texts) if self._texts else {}
        self._kept: dict[tuple[str, ...], Any] = {}
        heads = {p.graphs[-1]: p.graphs for p in manifest.pipelines}
        # A task of a head that this model lacks cannot be asked.
        self._graphs = {name: heads[f"head.{name}"] for name in evidence.tasks if f"head.{name}" in heads}

    def outputs(self, session: Callable[[str], Session], made_by: Callable[[str], str] = str) -> Tensors:
        """``images/SET`` float32 [n, E], ``text_embed`` [distinct texts, E] and ``logits/TASK`` [n, k, classes].

        ``session(graph)`` gives the session to ask; ``made_by(graph)`` names what is in it: outputs of the same names are
        taken from an earlier call.
        """
        found: Tensors = {}
        for name, images in self.evidence.images.items():
            if images.ndim == 4:
                found[f"images/{name}"] = self._images(name, session, made_by)["image_embed"]
        if self._texts:
            found[TEXTS] = self._encoded_texts(session, made_by)[TEXTS]
        for name, graphs in self._graphs.items():
            found[f"logits/{name}"] = self._logits(name, graphs, session, made_by)
        return found

    def figures(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """``embeddings``: of each, its agreement with the reference; ``tasks``: of each, the paired loss and ``top1``, the
        share of answers that are the reference's; ``references``: how far each output is from its reference, by
        :func:`~simmim_export.proof.parity.difference`, for logits by :func:`~simmim_export.proof.parity.logits_error`.

        ``not_finite`` in the rows counts outputs that are NaN or infinite. They count as wrong, and no budget is kept with any.
        Raise :class:`BundleError` for evidence without a reference, and :class:`GateFailed` for outputs of another shape.
        """
        reference = self.evidence.reference
        needed = {*outputs, *(f"logits/{name}" for name in self._graphs)}
        if RETRIEVAL in self.evidence.tasks:
            needed |= {TEXTS, f"images/{self.evidence.tasks[RETRIEVAL].images}"}
        if needed - set(reference):
            lacks = ", ".join(sorted(needed - set(reference)))
            raise BundleError(f"the evidence has no reference for {lacks}", fix="export the bundle again")
        for name in sorted(needed):
            got = outputs.get(name)
            if got is None or got.shape != reference[name].shape or not np.issubdtype(got.dtype, np.floating):
                said = "nothing" if got is None else f"{got.dtype} {list(got.shape)}"
                what = f"the graphs gave {said} for {name}, PyTorch {list(reference[name].shape)}"
                raise GateFailed(what, fix="export the bundle again")
        embeddings: dict[str, Any] = {}
        for name, values in outputs.items():
            if not name.startswith("logits/"):
                tower = "image_embed" if name.startswith("images/") else TEXTS
                row, worst = agreement(reference[name], values), embeddings.get(tower)
                # Of several sets of images the worst stands for the tower.
                if worst is None or _badness(row) > _badness(worst):
                    embeddings[tower] = row
        tasks = {}
        for name, task in self.evidence.tasks.items():
            if name == RETRIEVAL:
                tasks[name] = self._retrieval(task, reference, outputs)
            elif name in self._graphs:
                tasks[name] = _answers(task, reference[f"logits/{name}"], outputs[f"logits/{name}"])
        references = {}
        for name, values in outputs.items():
            error, cosine = difference(values, reference[name])
            if name.startswith("logits/"):
                error = logits_error(values, reference[name])
            references[name] = {"scaled_error": error, "cosine": cosine}
        source = dict(self.evidence.source)
        return {"embeddings": embeddings, "tasks": tasks, "references": references, "source": source}

    def _retrieval(
        self, task: Task, reference: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
    ) -> dict[str, Any]:
        rows = np.array([[self._number[text] for text in texts] for texts in task.texts])
        images = f"images/{task.images}"
        chosen = [first_choices(o[images], o[TEXTS][rows]) for o in (reference, outputs)]
        own = np.arange(len(rows))[:, None]
        broken = (~np.isfinite(outputs[images]).all(axis=1)).sum() + (~np.isfinite(outputs[TEXTS]).all(axis=1)).sum()
        return paired_loss(*((choice == own).astype(np.float64) for choice in chosen)) | {
            "metric": f"recall at 1 among {gallery(len(rows))}",
            "top1": float((chosen[0] == chosen[1]).mean()),
            "not_finite": int(broken),
        }

    def _keep(self, key: tuple[str, ...], make: Callable[[], Any]) -> Any:
        if key not in self._kept:
            # Four versions of each stage: with fewer a planner that goes back and forth would ask again.
            same = [other for other in self._kept if other[:2] == key[:2]]
            for old in same[:-3]:
                del self._kept[old]
            self._kept[key] = make()
        return self._kept[key]

    def _images(self, name: str, session: Callable[[str], Session], made_by: Callable[[str], str]) -> Tensors:
        """``image_tokens`` and, of images, ``image_embed`` of a set; clips go through the video encoder."""
        images = self.evidence.images[name]
        if images.ndim == 4:
            key = ("images", name, made_by("image_encoder"))
            return self._keep(key, lambda: self._run("image_encoder", {"pixels": images}, session))

        def clips() -> Tensors:
            frames = self._run("image_encoder", {"pixels": images.reshape(-1, *images.shape[2:])}, session)
            tokens = frames["image_tokens"].reshape(*images.shape[:2], *frames["image_tokens"].shape[1:])
            feeds = {"frame_tokens": tokens, "frame_mask": np.ones(images.shape[:2], np.int64)}
            return self._run("video_encoder", feeds, session)

        return self._keep(("images", name, made_by("image_encoder"), made_by("video_encoder")), clips)

    def _encoded_texts(self, session: Callable[[str], Session], made_by: Callable[[str], str]) -> Tensors:
        key = ("texts", "", made_by("text_encoder"))
        return self._keep(key, lambda: self._run("text_encoder", self._tokens, session))

    def _logits(
        self, name: str, graphs: tuple[str, ...], session: Callable[[str], Session], made_by: Callable[[str], str]
    ) -> np.ndarray:
        """The logits of a task: the graphs of its pipeline in order over named tensors, as the runtime runs them.

        A graph runs on as few rows as its inputs have: once for each image, once for each distinct text, or, if it reads both,
        once for each question about an image.
        """
        task = self.evidence.tasks[name]
        count, each = task.labels.shape

        def ask() -> np.ndarray:
            images = self._images(task.images, session, made_by)
            rows = {IMAGES: np.repeat(np.arange(count), each)}
            if task.texts:
                rows[WORDS] = np.array([self._number[text] for row in task.texts for text in row])
            tensors: dict[str, tuple[str, np.ndarray]] = {key: (IMAGES, array) for key, array in images.items()}
            tensors |= {key: (WORDS, array) for key, array in self._tokens.items()}
            for graph in graphs:
                spec = self.manifest.graph(graph)
                if all(tensor.name in images for tensor in spec.outputs):
                    continue  # as the runtime does with an image that is encoded already
                inputs = {tensor.name: tensors[tensor.name] for tensor in spec.inputs}
                kinds = {kind for kind, _ in inputs.values()}
                kind = kinds.pop() if len(kinds) == 1 else PAIRS
                if graph == "text_encoder":
                    outputs = self._encoded_texts(session, made_by)
                elif kind == PAIRS:
                    outputs = self._run(graph, {n: _spread(a, rows.get(k)) for n, (k, a) in inputs.items()}, session)
                else:
                    outputs = self._run(graph, {n: array for n, (_, array) in inputs.items()}, session)
                tensors |= {key: (kind, array) for key, array in outputs.items()}
            kind, logits = tensors["logits"]
            if kind != PAIRS:
                logits = logits[rows[kind]]
            return logits.reshape(count, each, -1)

        return self._keep(("logits", name, *map(made_by, graphs_behind(self.manifest, f"logits/{name}"))), ask)

    def _run(self, graph: str, feeds: Mapping[str, Any], session: Callable[[str], Session]) -> Tensors:
        """All rows of ``feeds`` through a graph, in its largest batches; texts of like length together, without the padding
        that none of them needs, as a caller would send them."""
        spec, opened = self.manifest.graph(graph), session(graph)
        count, step = len(next(iter(feeds.values()))), self._batch or spec.axis("batch").maximum
        mask = feeds.get("attention_mask")
        lengths = np.zeros(count, int) if mask is None else mask.sum(axis=1)
        order = np.argsort(lengths, kind="stable")
        found: Tensors = {}
        for start in range(0, count, step):
            self._watch(f"ask {graph}", start, count)
            rows = order[start : start + step]
            part = {name: array[rows] for name, array in feeds.items()}
            if mask is not None:
                limit = max(int(lengths[rows].max()), spec.axis("sequence").minimum)
                for tensor in spec.inputs:
                    if "sequence" in tensor.shape:
                        part[tensor.name] = part[tensor.name][:, :limit]
            outputs = opened.run(part)
            for tensor in spec.outputs:
                values = outputs[tensor.name]
                if len(values) != len(rows):
                    what = f"{graph} gave {len(values)} rows of {tensor.name} for {len(rows)}"
                    raise GateFailed(what, fix="export the bundle again")
                if tensor.name not in found:
                    full = list(values.shape)
                    if "sequence" in tensor.shape and mask is not None:
                        full[tensor.shape.index("sequence")] = mask.shape[1]
                    found[tensor.name] = np.zeros((count, *full[1:]), values.dtype)
                if "sequence" in tensor.shape:
                    found[tensor.name][rows, : values.shape[1]] = values
                else:
                    found[tensor.name][rows] = values
        return found


class _Rows:
    """Rows of an array by number, taken when they are needed: a question's image tokens are not copied for all of them."""

    def __init__(self, array: np.ndarray, rows: np.ndarray) -> None:
        self._array, self._rows = array, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, which: np.ndarray) -> np.ndarray:
        found: np.ndarray = self._array[self._rows[which]]
        return found


def _spread(array: np.ndarray, rows: np.ndarray | None) -> Any:
    """``array`` with one row for each question: ``rows`` by number, or as it is for None. Small arrays are copied."""
    if rows is None:
        return array
    return array[rows] if array.ndim <= 2 else _Rows(array, rows)


def _badness(row: Mapping[str, Any]) -> tuple[int, float]:
    return row["not_finite"], -row["cosine_mean"]


def _answers(task: Task, reference: np.ndarray, found: np.ndarray) -> dict[str, Any]:
    chosen = [choices(values) for values in (reference, found)]
    right = [task.right(classes) for classes in chosen]
    more = {"metric": "accuracy", "top1": float((chosen[0] == chosen[1]).mean())}
    return paired_loss(*right) | more | {"not_finite": int((chosen[1] < 0).sum())}
