"""Writes the folder: the page, the packages from npm, the bundle's files that the page runs, and ``site.json`` about them."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from simmim_export.bundle import Bundle, vocabulary
from simmim_export.bundle.golden import FILE as GOLDEN
from simmim_export.bundle.manifest import Artifact
from simmim_export.bundle.opened import MOST_BYTES
from simmim_export.bundle.staging import Staging
from simmim_export.errors import BundleError, EngineUnavailable, UsageError
from simmim_export.proof.certificate import PLANNED
from simmim_export.proof.parity import tolerance_of
from simmim_export.runtime.images import ImagePreprocessing
from simmim_export.runtime.inputs import second_axis
from simmim_export.runtime.text import Tokenizer
from simmim_export.spec import GraphSpec, Kind, Pipeline, Precision, PrecisionPlan, Variant, fed_tensors
from simmim_export.system.files import parse_json, read_file, size
from simmim_export.system.plain import as_json
from simmim_export.system.watch import Watch
from simmim_export.version import __version__
from simmim_export.web import checks
from simmim_export.web.packages import FILES, LICENSES, RUNTIMES, installed

PAGE = Path(__file__).parent / "page"
TOKENIZER = "tokenizer.json"
SITE = "site.json"
# The variant of each precision that any build of ONNX Runtime Web computes exactly. Not int8-dot: with relaxed SIMD its products
# of 8 bits may saturate.
VARIANTS = {Precision.FP32: Variant.FP32, Precision.FP16: Variant.FP16, Precision.INT8: Variant.INT8_U8}
# WebAssembly has 32-bit addresses.
MEMORY = 4 << 30
# Parts of a tokenizer.json that the JavaScript library lacks, by their section.
LACKING = {"normalizer": {"Nmt", "ByteLevel"}, "pre_tokenizer": {"UnicodeScripts", "CharDelimiterSplit"}}
# How much of a file is compressed at once.
_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Site:
    """A folder that was written. ``download`` are the ``bytes`` that a browser loads, and how many they are ``gzipped``."""

    path: Path
    variants: Mapping[str, Variant]
    files: int
    bytes: int
    download: Mapping[str, int]


def plan_for_browser(bundle: Bundle, precision: str) -> PrecisionPlan:
    """The precision plan that the text ``precision`` describes.

    Raise :class:`UsageError` for a text that does not parse or names a graph that the bundle lacks, and
    :class:`EngineUnavailable` for a precision that a browser lacks, and for ``planned`` without a plan.
    """
    if precision == PLANNED:
        planned = bundle.manifest.plans.get("ort", {}).get(Variant.INT8_U8)
        if planned is None:
            what = f"the bundle has no plan for ort with {Variant.INT8_U8}, which a browser would use"
            raise EngineUnavailable(what, where=bundle.root, fix="give --precision fp32 or int8")
        precision = planned
    plan = PrecisionPlan.parse(precision)
    plan.check(graph.name for graph in bundle.manifest.graphs)
    for graph in bundle.manifest.graphs:
        if plan.of(graph.name) not in VARIANTS:
            what = f"a browser has no {plan.of(graph.name)} (it has: {', '.join(VARIANTS)})"
            raise EngineUnavailable(what, fix=f"use --precision {Precision.FP32}")
    return plan


def artifacts_for(bundle: Bundle, plan: PrecisionPlan) -> dict[str, Artifact]:
    """The file of each graph that the page runs, by graph.

    Raise :class:`UsageError` for a bundle that takes only clips, :class:`EngineUnavailable` if it lacks a variant, and
    :class:`BundleError` if the files do not fit into the memory of a browser.
    """
    names = {name for pipeline in _pipelines(bundle) for name in pipeline.graphs}
    graphs = [graph.name for graph in bundle.manifest.graphs if graph.name in names]
    artifacts = {graph: bundle.artifact(graph, VARIANTS[plan.of(graph)]) for graph in graphs}
    sizes = [artifact.bytes for artifact in artifacts.values()]
    # While ONNX Runtime opens a graph, its file, the parsed file and the weights are there at the same time.
    needed = sum(sizes) + 2 * max(sizes)
    if needed > MEMORY:
        opening = f"{needed / 2**30:.1f} GiB while a browser opens them; WebAssembly has {MEMORY / 2**30:.0f} GiB"
        what = (
            f"the bundle is too large for a browser: its graphs have {sum(sizes) / 2**30:.1f} GiB, and need {opening}"
        )
        raise BundleError(what, where=bundle.root, fix="choose a lower --precision, or export a smaller preset")
    return artifacts


def build(
    bundle: Bundle,
    output: Path,
    *,
    plan: PrecisionPlan,
    native: Mapping[str, Any] | None,
    overwrite: bool,
    watch: Watch,
) -> Site:
    """Write the page of ``bundle`` at ``plan`` to the folder ``output``, complete or not at all.

    ``native`` are the times of a native engine to show beside the browser's: ``cpu`` and ``milliseconds`` by graph. Raise
    :class:`UsageError` if ``output`` cannot be written, exists without ``overwrite``, or holds something else;
    :class:`BundleError` for a bundle with a wrong file or with a tokenizer that the page cannot apply; and what
    :func:`artifacts_for` and :func:`~simmim_export.web.packages.installed` raise.
    """
    artifacts = artifacts_for(bundle, plan)
    with Staging(output, overwrite, is_ours=_is_site, kind="page") as staging:
        # Everything is checked before anything is downloaded.
        described = _describe(bundle, artifacts)
        bundle.golden()
        relatives = (TOKENIZER, GOLDEN, *(artifact.path for artifact in artifacts.values()))
        sources = {"manifest.json": bundle.root / "manifest.json"} | {each: bundle.file(each) for each in relatives}
        with installed(watch) as packages:
            for name in FILES:
                shutil.copyfile(packages / name, staging.add(f"vendor/{name}"))
        for path in sorted(PAGE.iterdir()):
            shutil.copyfile(path, staging.add(path.name))
        for relative, source in sources.items():
            shutil.copyfile(source, staging.add(f"bundle/{relative}"))
        vendor = staging.root / "vendor"
        runtimes = {
            device: {
                "script": f"./vendor/{script}",
                "wasm": f"vendor/{wasm}",
                "sha256": _sha256(vendor / wasm),
                "bytes": (vendor / wasm).stat().st_size,
            }
            for device, (script, wasm) in RUNTIMES.items()
        }
        described |= {
            "precision": str(plan),
            "native": native,
            "runtimes": runtimes,
            "manifest": {"sha256": _sha256(staging.root / "bundle/manifest.json")},
            "bytes": {name: (staging.root / "bundle" / name).stat().st_size for name in (TOKENIZER, GOLDEN)},
        }
        described["download"] = _download(staging.root, watch=watch)
        staging.add(SITE, json.dumps(described))
        files, total = sum(path.is_file() for path in staging.root.rglob("*")), size(staging.root)
        staging.put_in_place()
    variants = {graph: artifact.variant for graph, artifact in artifacts.items()}
    return Site(path=output, variants=variants, files=files, bytes=total, download=described["download"])


def _pipelines(bundle: Bundle) -> list[Pipeline]:
    """Those that take images or texts."""
    manifest = bundle.manifest
    chosen = [one for one in manifest.pipelines if not {Kind.FRAMES, Kind.FRAME_MASK} & set(manifest.takes(one))]
    if not chosen:
        raise UsageError("this bundle takes only clips, and the page takes images and texts", where=bundle.root)
    return chosen


def _describe(bundle: Bundle, artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """The part of site.json that depends on the bundle alone."""
    manifest = bundle.manifest
    specs = [manifest.graph(name) for name in artifacts]
    fed = fed_tensors(specs)
    pictures, texts, rules = [], [], None
    if Kind.IMAGE in fed:
        pictures = checks.picture_checks(ImagePreprocessing.from_json(manifest.preprocessing["image"]))
    if Kind.TOKEN_IDS in fed:
        source = read_file(bundle.file(TOKENIZER), most=MOST_BYTES[TOKENIZER]).decode("utf-8")
        tokenizer = Tokenizer(source, manifest.preprocessing["text"]["max_length"], graphs=specs)
        rules = text_rules(source, tokenizer, specs=specs)
        texts = checks.text_checks(tokenizer, checks.asked_texts(bundle))
    return {
        "schema": 1,
        "version": __version__,
        "variants": {graph: artifact.variant for graph, artifact in artifacts.items()},
        "tolerances": {
            graph: as_json(tolerance_of(artifact.precision, artifact.parity)) for graph, artifact in artifacts.items()
        },
        "image": {"tallFirst": checks.TALL_FIRST},
        "text": rules,
        "checks": {"texts": texts, "pictures": pictures},
    }


def text_rules(source: str, tokenizer: Tokenizer, *, specs: Sequence[GraphSpec]) -> dict[str, Any]:
    """What the page must know to encode a text as ``tokenizer`` does.

    Raise :class:`BundleError` for a part that the JavaScript library lacks.
    """
    content = msgspec.json.decode(source)
    used = {section: set(_types(content.get(section))) for section in ("normalizer", "pre_tokenizer")}
    lacking = [name for section, names in LACKING.items() for name in sorted(used[section] & names)]
    model = content["model"]
    if model["type"] == "BPE" and model.get("unk_token") is None and "ByteLevel" not in used["pre_tokenizer"]:
        lacking.append("a BPE model that drops unknown characters")
    if lacking:
        what = f"tokenizer.json needs {', '.join(lacking)}, which the package @huggingface/tokenizers does not support"
        raise BundleError(what, fix="run this bundle in Python: simmim-export ask BUNDLE IMAGE QUESTION")
    read = vocabulary.read(source)
    before, after = _specials(read)
    return {
        "before": before,
        "after": after,
        "pad": read.pad,
        "longest": read.longest_text,
        "maxLength": tokenizer.max_length,
        "shortest": second_axis(specs, Kind.TOKEN_IDS)[0],
    }


def _types(part: Any) -> Iterator[str]:
    """The types of a component of a tokenizer and of those inside it."""
    if isinstance(part, dict):
        yield part.get("type", "")
        for child in (*part.get("normalizers", ()), *part.get("pretokenizers", ())):
            yield from _types(child)


def _specials(read: vocabulary.Vocabulary) -> tuple[list[int], list[int]]:
    """The ids that are put before and after every text."""
    tokenizer = read.tokenizer
    count = tokenizer.num_special_tokens_to_add(False)
    for word in ("a", *tokenizer.get_vocab(with_added_tokens=False)):
        try:
            encoding = tokenizer.encode(word, add_special_tokens=False)
        except Exception:  # noqa: BLE001, the library raises plain Exception, here for a word without a token
            continue
        ids = list(encoding.ids)
        whole = list(tokenizer.post_process(encoding).ids)
        places = [at for at in range(count + 1) if whole[at : at + len(ids)] == ids]
        if ids and len(places) == 1:
            return whole[: places[0]], whole[places[0] + len(ids) :]
    raise BundleError("tokenizer.json has no word that could be tokenized", fix="export the bundle again")


def _download(root: Path, *, watch: Watch) -> dict[str, int]:
    """The ``bytes`` that a browser loads to run the page on the processor, and how many they are ``gzipped``."""
    unused = {*RUNTIMES["webgpu"], *LICENSES}
    paths = sorted(path for path in root.rglob("*") if path.is_file() and path.name not in unused)
    gzipped = 0
    for index, path in enumerate(paths):
        watch("measuring the download", index, len(paths))
        gzipped += _gzipped(path)
    return {"bytes": sum(path.stat().st_size for path in paths), "gzipped": gzipped}


def _gzipped(path: Path) -> int:
    packer, total = zlib.compressobj(6, wbits=31), 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            total += len(packer.compress(chunk))
    return total + len(packer.flush())


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _is_site(folder: Path) -> bool:
    """Whether ``folder`` is empty or a page that this package wrote."""
    if not folder.is_dir():
        return False
    if not any(folder.iterdir()):
        return True
    try:
        content = parse_json(read_file(folder / SITE, most=64 << 20).decode("utf-8"))
    except (OSError, ValueError):
        return False
    return (
        isinstance(content, dict)
        and {"runtimes", "variants", "checks"} <= content.keys()
        and (folder / "vendor").is_dir()
    )


def how_to_serve(path: Path) -> str:
    """The command that serves the folder to browsers on this machine."""
    return f"python3 -m http.server --bind localhost --directory {shlex.quote(os.fspath(path))}"
