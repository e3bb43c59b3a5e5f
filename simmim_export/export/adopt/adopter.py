"""Turns ONNX files that somebody else exported into a bundle, as a spec file says what they are."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import onnx
import onnx_ir as ir
from tokenizers import Tokenizer, models

from simmim_export.bundle import Staging, check_draft
from simmim_export.bundle.onnx_file import check_graph_file, read_graph
from simmim_export.bundle.vocabulary import MAX_FILE, read
from simmim_export.engines import require_engine
from simmim_export.errors import BundleError, CheckpointError
from simmim_export.export.adopt.canaries import Canary, check_model, compare_with_original, require
from simmim_export.export.adopt.foreign import CONVERTER_ERRORS, EXPORT_PLAIN, read_foreign
from simmim_export.export.adopt.lowering import lower, unknown_operators
from simmim_export.export.adopt.probe import Probe, Samples, foreign_outputs, output_shapes, probe_pair
from simmim_export.export.adopt.spec_file import FIX, GraphTable, PipelineTable, SpecFile, read_spec
from simmim_export.export.adopt.wiring import SEQUENCE, Wiring, keep_outputs
from simmim_export.export.bundled_samples import sample_images, sample_texts
from simmim_export.export.description import describe, provenance
from simmim_export.export.evidence_folder import require_evidence
from simmim_export.export.exporter import Exported, assemble
from simmim_export.export.limits import MAX_BATCH, require_batch
from simmim_export.export.lower import Lower
from simmim_export.export.origin import AdoptedModel, OnnxGraph, opset_of
from simmim_export.models.tokenizer import check_tokenizer
from simmim_export.spec import BATCH, Axis, GraphSpec, Kind, Pipeline, Similarity, TensorSpec, Verb
from simmim_export.system.files import digest, read_file
from simmim_export.system.watch import Watch, unwatched

FAMILY = "adopted"
# A manifest always describes images and texts. These stand for what a model does not take.
NO_IMAGE = {"height": 32, "width": 32, "resize": "squash", "interpolation": "bilinear"}
NO_TEXT = {"max_length": 3}


@dataclass(frozen=True, kw_only=True)
class Adopted:
    """The exported bundle, and the canaries, all of which passed."""

    exported: Exported
    canaries: list[Canary]


def adopt_bundle(
    model: Path,
    output: Path,
    *,
    like: Path,
    overwrite: bool = False,
    max_batch: int = MAX_BATCH,
    lower: Lower = Lower(),
    evidence: Path | None = None,
    progress: Watch = unwatched,
) -> Adopted:
    """Make a bundle at ``output`` of ``model``, an ONNX file or a folder of them. ``like`` is the spec file (:mod:`.spec_file`).

    ONNX Runtime in FP32 is the reference. The other arguments are those of :func:`simmim_export.export.exporter.export_bundle`.

    Raise :class:`CheckpointError` for a spec or a file that cannot be used; :class:`UsageError` for the output and the batch;
    :class:`GateFailed` for a canary that failed, and as an export does. In every case nothing has been written at ``output``.
    """
    require_batch(max_batch)
    require_engine("ort")
    if evidence is not None:
        require_evidence(evidence, lower.calibration)
    spec = read_spec(like)
    with Staging(output, overwrite) as staging, tempfile.TemporaryDirectory() as scratch:
        progress("read the ONNX files", 0, 1)
        adoption = Adoption(model=model, like=like, spec=spec, scratch=Path(scratch), max_batch=max_batch)
        adopted = adoption.adopt()
        origin = provenance(adoption.files[0], adopted, opset=max(map(opset_of, adopted.graphs.values())))
        if len(adoption.files) > 1:
            whole = hashlib.sha256("".join(map(digest, adoption.files)).encode()).hexdigest()
            origin |= {"checkpoint_sha256": whole}
        draft = describe(adopted, FAMILY, provenance=origin)
        try:
            check_draft(draft, like, fix=FIX)
        except BundleError as error:
            raise CheckpointError(error.what, where=like, fix=FIX) from error
        progress("canaries", 0, 1)
        canaries = adoption.canaries + check_model(adopted, adoption.samples, where=like)
        require(canaries, like)
        draft = replace(draft, provenance=origin | {"canaries": [canary.as_row() for canary in canaries]})
        exported = assemble(
            adopted,
            draft,
            staging=staging,
            max_batch=max_batch,
            opset=int(str(origin["opset"])),
            where=like,
            lower=lower,
            evidence=evidence,
            progress=progress,
        )
    return Adopted(exported=exported, canaries=canaries)


@dataclass(kw_only=True)
class Adoption:
    """Reads the files that ``spec`` names, and makes graphs of ours of them in ``scratch``.

    ``files`` are the original files, each once; ``canaries`` compare the graphs with them.
    """

    model: Path
    like: Path
    spec: SpecFile
    scratch: Path
    max_batch: int
    files: list[Path] = field(default_factory=list, init=False)
    canaries: list[Canary] = field(default_factory=list, init=False)
    samples: Samples = field(init=False)

    def adopt(self) -> AdoptedModel:
        """The model. Raise :class:`CheckpointError` for anything that cannot be used."""
        spec = self.spec
        tokenizer = self._tokenizer()
        image = NO_IMAGE if spec.image is None else self._image()
        text = NO_TEXT if spec.text is None else {"max_length": spec.text.max_length}
        texts = (() if spec.text is None else spec.text.samples) or sample_texts()
        images = sample_images(image)
        # Every second one is the mirror image of the one before, which some models cannot tell apart.
        self.samples = Samples(images=images[::2], texts=texts, vocabulary=read(tokenizer))
        graphs = self._graphs(longest=text["max_length"])
        for graph in graphs.values():
            tables = read_graph(graph.path).tables
            for tensor in graph.spec.inputs:
                if tensor.kind is Kind.TOKEN_IDS and tensor.name in tables:
                    check_tokenizer(
                        tokenizer, tables[tensor.name], where=self.like, fix="give the model's own tokenizer.json"
                    )
        similarity = spec.similarity
        return AdoptedModel(
            config={"preset": spec.name},
            graphs=graphs,
            pipelines=tuple(_pipeline(table, graphs, where=self.like) for table in spec.pipelines),
            preprocessing={"image": image, "text": text},
            tokenizer=tokenizer,
            labels=spec.labels,
            images=images,
            texts=tuple(texts),
            similarity=None if similarity is None else Similarity(**msgspec.structs.asdict(similarity)),
        )

    def _image(self) -> dict[str, object]:
        image = self.spec.image
        assert image is not None
        sides: dict[str, object] = {"height": image.height, "width": image.width, "resize": image.resize}
        shortest: dict[str, object] = {"shortest": image.shortest} if image.resize == "crop" else {}
        return sides | {"interpolation": image.interpolation} | shortest

    def _tokenizer(self) -> str:
        """The text of the tokenizer.json; for a model without texts, one that knows no word."""
        if self.spec.text is None:
            return str(Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]")).to_str())
        path = self.like.parent / self.spec.text.tokenizer
        fix = "give the model's own tokenizer.json; the path in the spec begins at the folder of the spec"
        try:
            text = read_file(path, most=4 * MAX_FILE).decode("utf-8")
            read(text)
        except FileNotFoundError as error:
            raise CheckpointError("no such tokenizer", where=path, fix=fix) from error
        except OSError as error:
            raise CheckpointError(f"it cannot be read: {error.strerror or error}", where=path, fix=fix) from error
        except ValueError as error:
            raise CheckpointError(f"not a tokenizer.json: {error}", where=path, fix=fix) from error
        return text

    def _file(self, table: GraphTable) -> Path:
        folder = self.model if self.model.is_dir() else self.model.parent
        if not table.file:
            if self.model.is_dir():
                what = f"the model is a folder, and the spec does not say which file the graph {table.name} is in"
                raise CheckpointError(what, where=self.like, fix='add file = "...onnx" to the graph, or give one file')
            return self.model
        if not self.model.is_dir() and table.file != self.model.name:
            what = (
                f"the spec says that the graph {table.name} is in {table.file!r}, and the model is {self.model.name!r}"
            )
            fix = f"leave file out of the spec, or give the folder: {folder}"
            raise CheckpointError(what, where=self.like, fix=fix)
        path = folder / table.file
        if "\0" in table.file or not path.resolve().is_relative_to(folder.resolve()):
            what = f"the file {table.file!r} of the graph {table.name} lies outside the model's folder"
            raise CheckpointError(what, where=self.like, fix="give a file in the model's folder, or below it")
        return path

    def _graphs(self, *, longest: int) -> dict[str, OnnxGraph]:
        specials = self.samples.vocabulary.tokenizer.num_special_tokens_to_add(False)
        shortest = max(1, min(specials + 1, longest))
        probes = probe_pair(shortest=shortest, longest=longest)
        given: dict[str, TensorSpec] = {}
        graphs: dict[str, OnnxGraph] = {}
        for table in self.spec.graphs:
            if table.name in graphs:
                raise CheckpointError(f"two graphs are called {table.name}", where=self.like, fix=FIX)
            path = self._file(table)
            self.files += [path] if path not in self.files else []
            graph = self._graph(
                table, path, given=given, probes=probes, axes={SEQUENCE: Axis(SEQUENCE, shortest, longest)}
            )
            given |= {tensor.name: tensor for tensor in graph.spec.outputs}
            graphs[table.name] = graph
        return graphs

    def _graph(
        self,
        table: GraphTable,
        path: Path,
        *,
        given: dict[str, TensorSpec],
        probes: tuple[Probe, Probe],
        axes: dict[str, Axis],
    ) -> OnnxGraph:
        target = self.scratch / f"{table.name}.onnx"
        foreign = read_foreign(path)
        types = {
            value.name: onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
            for value in foreign.model.graph.input
        }
        model = ir.from_proto(foreign.model)
        wiring = Wiring(model.graph, table, spec=self.spec, given=given, path=path)
        try:
            wiring.wire()
            lower(model)
            unknown = unknown_operators(model.graph)
        except CONVERTER_ERRORS as error:
            what = f"graph {table.name} cannot be rewritten: {error}"
            raise CheckpointError(what, where=path, fix=EXPORT_PLAIN) from error
        if unknown:
            what = f"graph {table.name} uses operators that no bundle may hold: {', '.join(unknown[:10])}"
            raise CheckpointError(what, where=path, fix=EXPORT_PLAIN)
        names = [one.known_as for one in table.outputs]
        used = {size for tensor in wiring.inputs for size in tensor.shape if isinstance(size, str)}
        own = tuple(axis for name, axis in ({BATCH: Axis(BATCH, 1, self.max_batch)} | axes).items() if name in used)
        onnx.save(ir.to_proto(model), target)
        before = GraphSpec(table.name, tuple(wiring.inputs), (), own)
        shapes = output_shapes(target, before, names, probes=probes, samples=self.samples, where=path)
        for value, shape in zip(model.graph.outputs, shapes, strict=True):
            value.shape = ir.Shape(shape)
        onnx.save(ir.to_proto(model), target)
        outputs = tuple(
            TensorSpec(one.known_as, str(probes[0].flowing[one.known_as].dtype), shape, Kind(one.kind))
            for one, shape in zip(table.outputs, shapes, strict=True)
        )
        graph = GraphSpec(table.name, tuple(wiring.inputs), outputs, own)
        try:
            check_graph_file(target, graph)
        except BundleError as error:
            raise CheckpointError(error.what, where=path, fix=EXPORT_PLAIN) from error
        part = _part_of(
            foreign.original, [one.name for one in table.outputs], self.scratch / f"{table.name}.original.onnx"
        )
        for probe in probes:
            feeds = probe.feeds(graph.inputs, self.samples)
            original = foreign_outputs(part, table, feeds, types=types, image=self.spec.image, layout=wiring.layout)
            self.canaries += compare_with_original(table.name, probe.flowing, original)
        return OnnxGraph(target, graph)


def _part_of(model: onnx.ModelProto, outputs: list[str], path: Path) -> Path:
    """The part of the original ``model`` that computes ``outputs``, written to ``path`` as it is."""
    part = ir.from_proto(model)
    keep_outputs(part.graph, outputs)
    unused = [value for value in part.graph.inputs if not value.uses()]
    for value in unused:
        part.graph.inputs.remove(value)
    onnx.save(ir.to_proto(part), path)
    return path


def _pipeline(table: PipelineTable, graphs: dict[str, OnnxGraph], *, where: Path) -> Pipeline:
    """The pipeline of ``table``. By default it gives what its verb reads; :func:`check_draft` refuses what makes no sense. Raise
    :class:`CheckpointError` for a graph that the spec lacks."""
    for name in table.graphs:
        if name not in graphs:
            what = f"the pipeline for {table.verb} names the graph {name!r}, and the spec has {', '.join(graphs)}"
            raise CheckpointError(what, where=where, fix=FIX)
    kind = Kind.EMBEDDING if table.verb in (Verb.EMBED_IMAGE, Verb.EMBED_TEXT) else Kind.LOGITS
    outputs = table.outputs or tuple(
        tensor.name for tensor in graphs[table.graphs[-1]].spec.outputs if tensor.kind is kind
    )
    labels = table.labels or (table.verb if kind is Kind.LOGITS else "")
    return Pipeline(table.name or table.verb, table.graphs, outputs, table.verb, labels)
