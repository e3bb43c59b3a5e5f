"""The runs behind docs/results.md: which commands make each figure.

``make results`` runs what docs/results.json does not contain yet, two runs at a time, and renders the page. A run is
deterministic: it trains a fixed number of steps from a fixed seed with one thread, so a busy machine changes only the
time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from simmim_export.console import progress_bar, run_app, say
from simmim_export.errors import GateFailed
from simmim_export.system import children
from simmim_export.system.outputs import replacing
from simmim_export.training.progress import Countdown
from simmim_export.training.results_page import REVISION, SEEDS, SHARES, page, plot

# The number of labels that counts as 100 %.
LABELED = {"shapes": 16384, "digits": 1438}
PAIRS = (
    ("concat_sequence", "attention"),
    ("concat_feature", "linear"),
    ("film", "attention"),
    ("concat_sequence", "linear"),
    ("gated", "linear"),
    ("bilinear", "linear"),
    ("film", "linear"),
    # Computes a score for each pair of rows and each channel, so it is four times as slow as the others.
    ("concat_sequence", "graph"),
    ("film", "graph"),
)
TRAIN, EXPORT, BENCH = "simmim_export.training.cli", "simmim_export.cli", "simmim_export.benchmarks.cli"
EVALUATE = ("--eval-scenes", "512")


@dataclass(frozen=True)
class Run:
    """A figure's name, the run whose checkpoint it starts from, and its commands. In these, ``{start}`` and ``{out}``
    stand for paths of checkpoints. The JSON of the last command is the result. A ``timed`` run comes last, alone and
    with every thread."""

    key: str
    _: KW_ONLY
    after: str | None
    commands: tuple[tuple[str, ...], ...]
    timed: bool = False


def _align(steps: int = 300) -> tuple[str, ...]:
    return (TRAIN, "pretrain", "--tags", "1", "--itm", "0", "--mlm", "0", "--lr", "2e-3", "--steps", str(steps))


def runs() -> Iterator[Run]:
    """Every run, in order: a run comes after the one it starts from."""
    from_start, to = ("--from", "{start}"), ("-o", "{out}", "--json", *EVALUATE)
    finetune = (TRAIN, "finetune", *from_start)

    def base(name: str, seed: int, *split: str, mim: bool = False) -> Run:
        common, middle = ("--seed", str(seed), *split), "{out}.aligned.pt"
        first = (*_align(), *common, *EVALUATE, "-o", middle)
        second = (TRAIN, "pretrain", "--from", middle, "--steps", "350", *common, *(("--mim", "1") if mim else ()), *to)
        return Run(name, after=None, commands=(first, second))

    for seed in SEEDS:
        yield base(f"base/{seed}", seed)
    yield base("base-A/0", 0, "--split", "A")
    for seed in SEEDS:
        video = (*finetune, "--data", "clips", "--seed", str(seed), "--steps", "500", "--batch-size", "16", *to)
        yield Run(f"video_class/{seed}", after=f"base/{seed}", commands=((*video, "--task", "video_class"),))
    answer = (*finetune, "--steps", "600", *to)
    yield Run("cogent/0", after="base-A/0", commands=((*answer, "--split", "A"),))
    across = (TRAIN, "evaluate", "{start}", "--split", "B", "--eval-scenes", "512", "--json")
    yield Run("cogent-B/0", after="cogent/0", commands=(across,))
    yield Run("vqa/0", after="base/0", commands=(answer,))
    pointing = (TRAIN, "evaluate", "{start}", "--pointing", "--eval-scenes", "512", "--json")
    yield Run("pointing/0", after="vqa/0", commands=(pointing,))
    yield Run("retrieval/0", after="base/0", commands=((*finetune, "--task", "retrieval", "--steps", "400", *to),))
    yield Run("text_class/0", after="base/0", commands=((*finetune, "--task", "text_class", "--steps", "400", *to),))
    video = (*finetune, "--data", "clips", "--task", "video_qa", "--steps", "500", "--batch-size", "16", *to)
    yield Run("video_qa/0", after="base/0", commands=(video,))
    for seed in SEEDS[:2]:
        for fusion, interaction in PAIRS if seed == 0 else PAIRS[:2]:
            yield _pair(fusion, interaction, seed)
    for data, steps in (("digits", "200"), ("shapes", "600")):
        for seed in SEEDS:
            for share in SHARES:
                yield from _labels(data, steps, seed, share)
    for seed in SEEDS[:2]:
        yield base(f"base-mim/{seed}", seed, mim=True)
        for name in ("base", "base-mim"):
            common = (*finetune, "--steps", "250", "--seed", str(seed), *to)
            yield Run(f"mim/{name}/{seed}", after=f"{name}/{seed}", commands=(common,))
    yield from _exports()
    yield Run("throughput", after=None, commands=((BENCH, "train", "--json"),), timed=True)


def _exports() -> Iterator[Run]:
    """Export one checkpoint of every task and of every pair; each graph must agree with PyTorch at every shape."""
    tasks = ("vqa/0", "retrieval/0", "text_class/0", "video_class/0", "video_qa/0", "labels/digits/pretrained/100/0")
    for key in (*tasks, *(f"pair/{fusion}/{interaction}/0" for fusion, interaction in PAIRS)):
        yield Run(
            f"export/{key}",
            after=key,
            commands=((EXPORT, "onnx", "{start}", "-o", "{out}.bundle", "--overwrite", "--json"),),
        )


def _pair(fusion: str, interaction: str, seed: int) -> Run:
    """Align the encoders, then train on questions. There are no masked words, which a fusion to one vector cannot learn
    from."""
    common, to = ("--seed", str(seed)), ("-o", "{out}", "--json", *EVALUATE)
    made, aligned = "{out}.new.pt", "{out}.aligned.pt"
    init = (TRAIN, "init", "--fusion", fusion, "--interaction", interaction, *common, "-o", made)
    align = (*_align(), "--from", made, *common, *EVALUATE, "-o", aligned)
    answer = (TRAIN, "finetune", "--from", aligned, "--rehearse", "0", "--steps", "450", *common, *to)
    return Run(f"pair/{fusion}/{interaction}/{seed}", after=None, commands=(init, align, answer))


def _labels(data: str, steps: str, seed: int, share: int) -> Iterator[Run]:
    examples = str(max(1, LABELED[data] * share // 100))
    task = ("--task", "image_class" if data == "digits" else "vqa", "--data", data, "--rehearse", "0")
    common = (TRAIN, "finetune", *task, "--examples", examples, "--steps", steps, "--seed", str(seed))
    to = ("-o", "{out}", "--json", *EVALUATE)
    yield Run(f"labels/{data}/scratch/{share}/{seed}", after=None, commands=((*common, *to),))
    yield Run(
        f"labels/{data}/pretrained/{share}/{seed}",
        after=f"base/{seed}",
        commands=((*common, "--from", "{start}", *to),),
    )


def execute(run: Run, folder: Path) -> dict[str, Any]:
    """Run the commands, each with one thread unless the run is timed; return the last one's JSON and the seconds that
    all took."""

    def path(key: str) -> str:
        return str(folder / f"{key.replace('/', '-')}.pt")

    started, output = time.monotonic(), ""
    changes = {} if run.timed else {"OMP_NUM_THREADS": "1"}
    for command in run.commands:
        words = [word.replace("{out}", path(run.key)).replace("{start}", path(run.after or "")) for word in command]
        words += ["--overwrite"] if words[1] in ("init", "pretrain", "finetune") else []
        done = children.run(children.python_command(*words), changes=changes)
        if done.code:
            raise GateFailed(done.failure, where=run.key)
        output = done.stdout
    return {"metrics": json.loads(output), "seconds": round(time.monotonic() - started), "revision": REVISION}


def main() -> None:
    """Run what is missing, then render the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--work", type=Path, default=Path("build/results"), help="folder for checkpoints")
    parser.add_argument("--only", default="", help="run only those whose name starts with this")
    parser.add_argument("--render", action="store_true", help="only render the page")
    options = parser.parse_args()
    options.docs.mkdir(exist_ok=True)
    options.work.mkdir(parents=True, exist_ok=True)
    store = options.docs / "results.json"
    results: dict[str, Any] = json.loads(store.read_text(encoding="utf-8")) if store.is_file() else {}
    wanted = [run for run in runs() if run.key not in results and run.key.startswith(options.only)]
    try:
        if not options.render:
            _run_all([run for run in wanted if not run.timed], results, store=store, folder=options.work)
            for run in (run for run in wanted if run.timed):
                results[run.key] = execute(run, options.work)
                _write(store, results)
    finally:
        plot(results, options.docs / "labels.png")
        (options.docs / "results.md").write_text(page(results, [run.key for run in runs()]), encoding="utf-8")
        say(f"wrote {options.docs / 'results.md'}")


def _write(store: Path, results: dict[str, Any]) -> None:
    with replacing(store) as temporary:
        temporary.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n", encoding="utf-8")


def _run_all(wanted: list[Run], results: dict[str, Any], *, store: Path, folder: Path) -> None:
    """Run two at a time, each after the one it starts from; write each result as soon as it is known."""
    with progress_bar("results") as watch, ThreadPoolExecutor(2) as pool:
        futures: dict[str, Any] = {}
        lock = Lock()

        def job(run: Run) -> None:
            if run.after in futures:
                futures[run.after].result()
            result = execute(run, folder)
            results[run.key] = result
            with lock:
                _write(store, results)

        for run in wanted:
            futures[run.key] = pool.submit(job, run)
        failed: list[str] = []
        countdown = Countdown(len(futures))
        for index, (key, future) in enumerate(futures.items()):
            watch(f"{key}{countdown.left(index)}", index, len(futures))
            try:
                future.result()
            except GateFailed as error:
                # Other runs continue and are kept; the page says what is missing.
                failed.append(f"{key}: {error}")
    if failed:
        raise GateFailed(f"{len(failed)} runs failed:\n" + "\n".join(failed), fix="see why, then repeat make results")


if __name__ == "__main__":
    run_app(main)
