"""Fuzz targets for checkpoints, data sets, pictures, clips and smaller files."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import mutate_pt, mutate_safetensors
from common import NO_DIGEST, Target, attempt
from mutators import Files, damage, mutate_json
from pictures import animations, mutate_picture, pictures
from texts import mutate_tar


class CheckpointTarget(Target):
    name = "checkpoint"

    def prepare(self) -> None:
        self.seeds = [self.sources.checkpoint.read_bytes()]
        from simmim_export.models.simmim import checkpoint

        folder = self.sources.scratch / "checkpoint"
        checkpoint.save(checkpoint.load(self.sources.checkpoint), folder)
        self._folder = {f"folder/{path.name}": path.read_bytes() for path in folder.iterdir()}

    def valid(self) -> Files:
        return {"ckpt.pt": self.seeds[0]}

    def make(self, rng: random.Random) -> Files:
        if rng.random() < 0.7:
            return {"ckpt.pt": mutate_pt(rng, self.seeds[0])}
        name = rng.choice(list(self._folder))
        mutate = mutate_json if name.endswith(".json") else mutate_safetensors
        return self._folder | {name: mutate(rng, self._folder[name])}

    def run(self, folder: Path) -> None:
        from simmim_export.models.simmim import checkpoint

        path = folder / "ckpt.pt" if (folder / "ckpt.pt").exists() else folder / "folder"
        loaded = checkpoint.load(path)
        model = checkpoint.build(loaded, path)
        assert not any(value.is_complex() for value in loaded.state.values()), "complex weights were accepted"
        assert model is not None


class TrainerTarget(Target):
    name = "trainer"

    def _stage(self) -> tuple[Any, Any, Any]:
        import torch

        from simmim_export.training.optimizers import make_optimizers
        from simmim_export.training.recipe import Recipe

        torch.manual_seed(0)
        stage = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
        recipe = Recipe(steps=4)
        return stage, make_optimizers(stage, recipe), recipe

    def prepare(self) -> None:
        from simmim_export.training.trainer_state import Progress, save_state

        path = self.sources.scratch / "trainer.state"
        stage, optimizers, recipe = self._stage()
        progress = Progress(step=2, seconds=1.0, samples=8, loss=0.5)
        save_state(path, stage, optimizers=optimizers, recipe=recipe, progress=progress, batches={"data": "shapes"})
        self.seeds = [path.read_bytes()]

    def make(self, rng: random.Random) -> Files:
        return {"input": mutate_pt(rng, self.seeds[0])}

    def run(self, folder: Path) -> None:
        from simmim_export.training.trainer_state import load_state

        stage, optimizers, recipe = self._stage()
        batches = {"data": "shapes"}
        progress = load_state(folder / "input", stage, optimizers=optimizers, recipe=recipe, batches=batches)
        assert isinstance(progress.step, int) and progress.step >= 0 and progress.seconds >= 0


class ReadersTarget(Target):
    name = "readers"

    def prepare(self) -> None:
        sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
        from test_readers import MAKERS

        self._splits: dict[str, str] = {}
        self._files: dict[str, Files] = {}
        for name, make in MAKERS.items():
            root = self.sources.scratch / "readers" / name
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir(parents=True)
            self._splits[name] = make(root)
            files = {
                f"{name}/{path.relative_to(root)}": path.read_bytes()
                for path in sorted(root.rglob("*"))
                if path.is_file()
            }
            self._files[name] = files

    def valid(self) -> Files:
        return {name: data for files in self._files.values() for name, data in files.items()}

    def make(self, rng: random.Random) -> Files:
        files = dict(self._files[rng.choice(list(self._files))])
        name = rng.choice(sorted(files, key=lambda n: n.endswith((".jpg", ".png")))[: rng.choice((1, 2, len(files)))])
        data = files.pop(name)
        if rng.random() < 0.1:
            odd = (
                name + "x",
                str(Path(name).with_suffix(".PNG")),
                name + "\udcff",
                f"{name}/x",
                str(Path(name).with_name("x")),
            )
            renamed = rng.choice(odd)
            return files | {renamed: data}
        if name.endswith(".tar"):
            return files | {
                name: mutate_tar(rng, data, [b"{}", b"[]", b'{"label": 1}', mutate_json(rng, b'{"captions": ["a"]}')])
            }
        if name.endswith(".json"):
            return files | {name: mutate_json(rng, data)}
        lines = data.split(b"\n")
        if name.endswith((".jsonl", ".csv")) and rng.random() < 0.7:
            index = rng.randrange(len(lines))
            lines[index] = (
                mutate_json(rng, lines[index]) if lines[index].startswith(b"{") else damage(rng, lines[index])
            )
            return files | {name: b"\n".join(lines)}
        return files | {name: damage(rng, data)}

    def run(self, folder: Path) -> None:
        from simmim_export.training.data.readers import read

        def records(name: str) -> None:
            for record in read(name, folder / name, self._splits[name]):
                texts = (
                    record.key,
                    *record.captions,
                    *(q.text for q in record.questions),
                    *(s.text for s in record.statements),
                )
                assert all(isinstance(text, str) for text in texts) and record.images

        attempt(*(lambda name=path.name: records(name) for path in sorted(folder.iterdir())))


# -- pictures ----------------------------------------------------------------------------------------------------------


class ImagesTarget(Target):
    name = "images"

    def prepare(self) -> None:
        self.seeds = pictures()

    def make(self, rng: random.Random) -> Files:
        return {"input": mutate_picture(rng, rng.choice(self.seeds), self.seeds)}

    def run(self, folder: Path) -> None:
        from simmim_export.runtime.images import ImagePreprocessing, load_pixels

        pixels = load_pixels([(folder / "input").read_bytes()], ImagePreprocessing(64, 48))
        assert pixels.shape == (1, 64, 48, 3) and pixels.dtype == np.uint8


class ClipsTarget(Target):
    name = "clips"

    def prepare(self) -> None:
        self.seeds = animations()
        self._pictures = pictures()

    def make(self, rng: random.Random) -> Files:
        if rng.random() < 0.8:
            return {"input": mutate_picture(rng, rng.choice(self.seeds), self.seeds)}
        names = (
            "frame1.png",
            "frame2.png",
            "frame².png",
            "frame10.jpg",
            "a\u0661.png",
            ".png",
            "x.PNG",
            "\udcff.png",
            "sub.png/x",
        )
        chosen = rng.sample(names, rng.randrange(1, 6))
        return {f"input/{name}": mutate_picture(rng, rng.choice(self._pictures)) for name in chosen}

    def run(self, folder: Path) -> None:
        from simmim_export.runtime.clips import choose_frames, is_animation, read_clip
        from simmim_export.runtime.images import ImagePreprocessing, load_pixels

        def frames() -> None:
            clip = read_clip(folder / "input")
            chosen = choose_frames(clip, least=2, most=4)
            pixels = load_pixels(chosen, ImagePreprocessing(64, 48))
            assert pixels.shape[1:] == (64, 48, 3) and 2 <= len(pixels) <= 4

        attempt(lambda: is_animation(folder / "input"), frames)


# -- smaller files -----------------------------------------------------------------------------------------------------


class PlanTarget(Target):
    name = "plan"

    def prepare(self) -> None:
        from simmim_export.engines.tensorrt import plan_file

        path = self.sources.scratch / "plans" / "engines" / "trt" / "head.vqa.fp16.plan"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._plan = b"a plan"
        path.write_bytes(self._plan)
        recipe = {
            "workspace": None,
            "level": 3,
            "compatibility": "none",
            "targets": [],
            "profile": {"batch": [1, 1, 8]},
        }
        target = plan_file.Target(library="TensorRT", version="11.0.0", sms=("9.0",), gpu="NVIDIA H200", driver=13000)
        sha256 = hashlib.sha256(self._plan).hexdigest()
        made = plan_file.Sidecar(
            graph="head.vqa",
            graph_sha256=NO_DIGEST,
            precision="fp16",
            sha256=sha256,
            bytes=len(self._plan),
            target=target,
            recipe=recipe,
            executed={"Half": 3},
            parity={"passed": True, "scaled_error": 0.001, "cosine": 1.0},
        )
        plan_file.write_sidecar(path, made)
        self._name, self._path = plan_file.sidecar_path(path).name, "engines/trt/"
        self.seeds = [plan_file.sidecar_path(path).read_bytes()]

    def valid(self) -> Files:
        return {self._path + "head.vqa.fp16.plan": self._plan, self._path + self._name: self.seeds[0]}

    def make(self, rng: random.Random) -> Files:
        return self.valid() | {self._path + self._name: mutate_json(rng, self.seeds[0])}

    def run(self, folder: Path) -> None:
        from simmim_export.engines.tensorrt import plan_file
        from simmim_export.spec import Axis, GraphSpec, TensorSpec

        path = plan_file.plan_file_path(folder, "head.vqa", engine="trt", precision="fp16")
        sidecar = plan_file.read_sidecar(path)
        spec = GraphSpec("head.vqa", (TensorSpec("fused", "float32", ("batch", 96)),), (), (Axis("batch", 1, 8),))
        attempt(
            lambda: plan_file.require_graph(path, sidecar, graph="head.vqa", precision="fp16"),
            lambda: plan_file.require_source(path, sidecar, sha256=NO_DIGEST),
            lambda: plan_file.require_target(
                path,
                sidecar,
                here=plan_file.Target(
                    library="TensorRT", version="11.0.0", sms=("9.0",), gpu="NVIDIA H200", driver=13000
                ),
            ),
            lambda: plan_file.require_whole(path, sidecar),
            lambda: plan_file.require_profile(path, sidecar, spec=spec).require({"batch": 1}),
        )


class TrafficTarget(Target):
    name = "traffic"

    def prepare(self) -> None:
        self.seeds = [b'{"batch": 1, "sequence": 12}\n{"batch": 4, "sequence": 16}\n\n{"batch": 4}\n']

    def make(self, rng: random.Random) -> Files:
        lines = self.seeds[0].split(b"\n")
        index = rng.randrange(2)
        lines[index] = mutate_json(rng, lines[index])
        data = b"\n".join(lines)
        return {"input": data if rng.random() < 0.6 else damage(rng, data)}

    def run(self, folder: Path) -> None:
        from simmim_export.engines.tensorrt.request import Request, read_traffic
        from simmim_export.spec import Axis, GraphSpec, TensorSpec

        axes = (Axis("batch", 1, 8), Axis("sequence", 3, 20))
        spec = GraphSpec("text", (TensorSpec("ids", "int64", ("batch", "sequence")),), (), axes)
        request = Request(traffic=read_traffic(folder / "input"))
        attempt(lambda: request.check([spec]), lambda: request.profile(spec), lambda: request.recipe(spec))


class CompareTarget(Target):
    """Benchmark files, compared and drawn."""

    name = "compare"

    def prepare(self) -> None:
        row = {"target": "pipeline:answer", "engine": "ort", "precision": "fp32", "batch": 1, "inputs": "x"}
        row |= {"rounds": [[0.001, 0.002], [0.0011, 0.0019]] * 4, "parity": {"cosine": 0.99}, "gpu_rounds": []}
        floor = {"seconds": 0.001, "flops": 1e6, "bytes": 1e5, "bound": "memory"}
        results = [
            row,
            row | {"target": "graph:fusion", "floor": floor},
            row | {"engine": "openvino", "precision": "int8"},
        ]
        for size in (1, 2):
            growth = {
                "suite": "growth",
                "target": "graph:text",
                "params": {"batch": size, "sequence": 4},
                "items": size,
            }
            results += [row | growth, row | growth | {"suite": "throughput"}]
        for stage in ("graphs", "api"):
            results.append(row | {"suite": "ladder", "target": "verb:answer", "params": {"stage": stage}})
        results.append(row | {"suite": "peers", "accuracy": {"cosine_mean": 0.999, "top1": 0.9}, "recipe": "static"})
        results.append(row | {"suite": "peers", "accuracy": {"cosine_mean": 0.99}})
        memory = [[5.0 * number, 300_000_000] for number in range(8)]
        results.append(row | {"suite": "soak", "target": "soak:mixed", "memory": memory})
        results.append(row | {"engine": "trt", "rounds": [], "failed": {"error": "WorkerDied", "message": "gone"}})
        host = {"cpu": "a processor", "gpu": None, "packages": {"numpy": "2"}, "threads_used": 2}
        document = {"schema": 2, "command": ["simmim-bench"], "suites": ["latency"], "host": host, "load_average": 0.1}
        document |= {"warnings": [], "bundle": {"preset": "tiny"}, "method": {"rounds": 8}, "finished_rounds": 8}
        document |= {"peaks": {"fp32": 1e11}, "engines": {"ort": {"cold_start": 0.2}}, "results": results}
        self.seeds = [json.dumps(document).encode()]

    def valid(self) -> Files:
        return {"first.json": self.seeds[0], "second.json": self.seeds[0]}

    def make(self, rng: random.Random) -> Files:
        return self.valid() | {rng.choice(("first.json", "second.json")): mutate_json(rng, self.seeds[0])}

    def run(self, folder: Path) -> None:
        from simmim_export.benchmarks.compare import ACCEPTED, compare
        from simmim_export.benchmarks.html.page import report

        paths = (folder / "first.json", folder / "second.json")
        attempt(
            lambda: json.dumps(compare(*paths, accept=ACCEPTED), allow_nan=False),
            lambda: report(paths[:1]).html(),
            lambda: report(paths[1:]).html(),
        )
