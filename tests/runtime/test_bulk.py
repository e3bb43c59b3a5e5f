"""One bad item does not stop the others: folders, texts by line, failures, warnings, and the output of the commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simmim_export.errors import ImageError, InputError, TextError, TruncatedText, UnknownWords, UsageError
from simmim_export.runtime import bulk, load
from simmim_export.runtime.bulk import MOST_BYTES, require_storable
from simmim_export.spec import Verb


def paint(path: Path, seed: int = 0) -> Path:
    """A small picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures p1, p2 and p10, a truncated one, a text, a link to nothing, a pipe, notes and a hidden file."""
    place = tmp_path / "pictures"
    for number in (10, 2, 1):
        paint(place / f"p{number}.png", number)
    (place / "cut.png").write_bytes((place / "p1.png").read_bytes()[:300])
    (place / "text.jpg").write_text("hello")
    (place / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(place / "pipe.png")
    (place / "notes.txt").write_text("not a picture")
    (place / "._p1.png").write_text("of another system")
    paint(place / "below" / "deep.png", 4)
    return place


BAD = ("cut.png", "gone.png", "text.jpg")


@pytest.fixture(scope="module")
def model(tiny_bundle: Path):
    with load(tiny_bundle) as opened:
        yield opened


# -- items -------------------------------------------------------------------------------------------------------


def test_a_folder_gives_its_pictures_in_natural_order(folder: Path) -> None:
    names = [Path(item.source).name for item in bulk.pictures([folder])]
    assert names == ["cut.png", "gone.png", "p1.png", "p2.png", "p10.png", "text.jpg"]
    names = [Path(item.source).name for item in bulk.pictures([folder], recursive=True)]
    assert names == ["deep.png", "cut.png", "gone.png", "p1.png", "p2.png", "p10.png", "text.jpg"]


def test_links_to_files_are_followed_and_links_to_folders_are_not(folder: Path, tmp_path: Path) -> None:
    (folder / "below" / "outside.png").symlink_to(paint(tmp_path / "outside.png"))
    (folder / "below" / "circle").symlink_to(folder)
    names = [Path(item.source).name for item in bulk.pictures([folder / "below"], recursive=True)]
    assert names == ["deep.png", "outside.png"]


def test_a_folder_without_pictures_is_an_error(tmp_path: Path) -> None:
    paint(tmp_path / "outer" / "inner" / "a.png")
    with pytest.raises(ImageError) as caught:
        bulk.pictures([tmp_path / "outer"])
    assert caught.value.where == str(tmp_path / "outer") and "--recursive" in str(caught.value.fix)
    assert len(bulk.pictures([tmp_path / "outer"], recursive=True)) == 1


def test_each_line_of_a_file_is_a_text(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes(b"\xef\xbb\xbfa circle\r\n\ncaf\xe9\na\x85b\n last ")
    items = bulk.read_texts(path)
    assert [item.value for item in items] == ["a circle", "", "caf\udce9", "a\udc85b", " last "]
    assert items[2].where == f"{path}, line 3"


@pytest.mark.parametrize("made", ["missing", "empty", "folder"])
def test_a_file_of_texts_that_cannot_be_used_is_an_error(tmp_path: Path, made: str) -> None:
    path = tmp_path / "texts.txt"
    if made == "empty":
        path.touch()
    elif made == "folder":
        path.mkdir()
    with pytest.raises(TextError) as caught:
        bulk.read_texts(path)
    assert caught.value.where == str(path) and caught.value.fix


# -- outcomes --------------------------------------------------------------------------------------------------


def test_bad_pictures_are_left_out_and_the_others_embedded(model, folder: Path) -> None:
    failures: list[bulk.Failure] = []
    outcome = bulk.embed(model, bulk.pictures([folder]), failed=failures.append)
    assert [Path(source).name for source in outcome.sources] == ["p1.png", "p2.png", "p10.png"]
    assert failures == list(outcome.failures.values())
    assert [Path(failure.source).name for failure in failures] == [*BAD]
    assert all(isinstance(failure.error, ImageError) and failure.error.where == failure.source for failure in failures)
    exact = model.embed_image([folder / name for name in ("p1.png", "p2.png", "p10.png")])
    np.testing.assert_allclose(np.stack(list(outcome.rows.values())), exact, atol=1e-6)
    with pytest.raises(InputError, match="3 of 6"):
        outcome.require_all("embedded")


def test_several_threads_embed_the_same_pictures_and_report_the_same_failures_in_order(
    tiny_bundle: Path, folder: Path
) -> None:
    """More pictures than two batches, so that one batch is decoded while another is computed."""
    for number in range(11, 32):
        paint(folder / f"p{number}.png", number)
        if number % 5 == 0:
            (folder / f"p{number}.png").write_text("broken")
    outcomes = []
    for threads in (1, 4):
        with load(tiny_bundle, threads=threads) as model:
            failures: list[bulk.Failure] = []
            outcome = bulk.embed(model, bulk.pictures([folder]), failed=failures.append)
            outcomes.append((outcome, [failure.as_json() for failure in failures]))
    (alone, failed_alone), (together, failed_together) = outcomes
    assert together.sources == alone.sources and failed_together == failed_alone and len(failed_alone) == 7
    np.testing.assert_allclose(np.stack(list(together.rows.values())), np.stack(list(alone.rows.values())), atol=1e-5)


def test_no_decoding_thread_is_left_after_an_error(tiny_bundle: Path, folder: Path) -> None:
    with load(tiny_bundle, threads=4) as model, pytest.raises(ImageError):
        bulk.embed(model, bulk.pictures([folder]), strict=True)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_bad_texts_are_left_out_and_the_others_embedded(model) -> None:
    outcome = bulk.embed(model, bulk.texts(["red circle", "", "caf\udce9", "blue square"]))
    assert outcome.sources == ["red circle", "blue square"]
    assert [failure.error.where for failure in outcome.failures.values()] == ["text 2", "text 3"]
    np.testing.assert_allclose(
        np.stack(list(outcome.rows.values())), model.embed_text(["red circle", "blue square"]), atol=1e-5
    )


def test_a_text_of_unknown_words_is_embedded_with_a_warning(model) -> None:
    with pytest.warns(UnknownWords) as caught:
        outcome = bulk.embed(model, bulk.texts(["red", "zzz", "yyy", "blue"]))
    assert outcome.sources == ["red", "zzz", "yyy", "blue"] and not outcome.failures
    assert ["zzz" in str(caught[0].message), "yyy" in str(caught[1].message), len(caught)] == [True, True, 2]
    np.testing.assert_allclose(outcome.rows[1], outcome.rows[2], atol=1e-6)


def test_strict_stops_at_the_first_failure(model, folder: Path) -> None:
    progress: list[int] = []
    with pytest.raises(ImageError) as caught:
        bulk.embed(model, bulk.pictures([folder]), strict=True, watch=lambda _, done, total: progress.append(done))
    assert caught.value.where == str(folder / "cut.png") and progress == [0]


def test_a_picture_that_disappears_is_one_failure(model, folder: Path) -> None:
    items = bulk.pictures([folder / "p1.png", folder / "p2.png"])
    (folder / "p1.png").unlink()
    outcome = bulk.embed(model, items)
    assert outcome.sources == [str(folder / "p2.png")] and list(outcome.failures) == [0]


def test_at_most_one_batch_is_in_memory(model) -> None:
    batch = model.largest_batch(model.pipeline(Verb.EMBED_TEXT))
    batches: list[int] = []
    progress: list[tuple[int, int]] = []

    def compute(texts: list[str]) -> np.ndarray:
        batches.append(len(texts))
        return model.embed_text(texts)

    items = bulk.texts(["red circle"] * (2 * batch + 1))
    outcome = bulk.run_texts(
        model,
        items,
        compute=compute,
        verb=Verb.EMBED_TEXT,
        watch=lambda _, done, total: progress.append((done, total)),
    )
    assert batches == [batch, batch, 1] and len(outcome.rows) == len(items)
    assert progress == [(done, len(items)) for done in (0, batch, 2 * batch, len(items))]


def test_each_text_that_is_cut_is_warned_of_once(model) -> None:
    """Although it is tokenized twice: when it is checked and when the verb runs."""
    batch = model.largest_batch(model.pipeline(Verb.EMBED_TEXT))
    long = [f"red circle {'blue square ' * (20 + number)}" for number in range(batch + 1)]
    with pytest.warns(TruncatedText) as caught:
        outcome = bulk.embed(model, bulk.texts(["red", *long]))
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == len(long) == len(outcome.rows) - 1
    assert all(f"texts[{index}]" in message for index, message in enumerate(messages, start=1))


def test_an_error_of_a_verb_is_raised_and_not_a_failure_of_an_item(model) -> None:
    def compute(texts: list[str]) -> list[None]:
        raise UsageError("no such head")

    with pytest.raises(UsageError):
        bulk.run_texts(model, bulk.texts(["red", "blue"]), compute=compute, verb=Verb.EMBED_TEXT)


def test_one_very_long_source_among_many_is_an_error() -> None:
    require_storable(["a" * 1000] * 1000)
    with pytest.raises(UsageError):
        require_storable(["a" * (MOST_BYTES // 4000), *["b"] * 1000])


# -- the commands --------------------------------------------------------------------------------------------------------


def test_embed_writes_the_good_rows_and_exits_5(
    run_cli, model, tiny_bundle: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "vectors.npz"
    done = run_cli("export", "embed", tiny_bundle, folder, "-o", out, "--json")
    assert done.returncode == 5 and "3 of 6" in done.stderr and "Traceback" not in done.stderr
    printed = json.loads(done.stdout)
    assert [Path(row["source"]).name for row in printed["failed"]] == [*BAD] and all(
        row["error"] for row in printed["failed"]
    )
    for name in BAD:
        assert str(folder / name) in done.stderr
    with np.load(out) as saved:
        assert [Path(source).name for source in saved["sources"]] == ["p1.png", "p2.png", "p10.png"]
        assert [Path(source).name for source in saved["failed"]] == [*BAD]
        np.testing.assert_allclose(saved["embeddings"], printed["embeddings"], atol=1e-7)
        assert len(saved["embeddings"]) == 3


def test_embed_takes_texts_by_line_and_names_the_bad_line(run_cli, tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("red circle\n\nblue square\n")
    done = run_cli("export", "embed", tiny_bundle, "--texts", path, "--text", "green circle")
    assert done.returncode == 5 and f"{path}, line 2" in done.stderr
    assert f"{path}, line 2: left out" in done.stdout and done.stdout.count("float32 [64]") == 3


def test_strict_writes_nothing(run_cli, tiny_bundle: Path, folder: Path, tmp_path: Path) -> None:
    done = run_cli("export", "embed", tiny_bundle, folder, "-o", tmp_path / "v.npz", "--strict", "--json")
    assert done.returncode == 5 and done.stdout == "" and str(folder / "cut.png") in done.stderr
    assert not (tmp_path / "v.npz").exists()


def test_nothing_embedded_writes_nothing(run_cli, tiny_bundle: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.npz"
    done = run_cli("export", "embed", tiny_bundle, folder / "cut.png", folder / "text.jpg", "-o", out)
    assert done.returncode == 5 and done.stdout == "" and not out.exists() and "2 of 2" in done.stderr


def test_json_lists_the_failures_if_every_item_failed(
    run_cli, every_bundle: Path, picture: Path, tmp_path: Path
) -> None:
    """Also for a single item, whose failure ends a command without --json."""
    for command, texts in (("ask", ("",)), ("match", ("", "")), ("classify", ("",))):
        done = run_cli("export", command, every_bundle, picture, *texts, "--json")
        assert done.returncode == 5 and "Traceback" not in done.stderr, done.stderr
        assert [bool(row["error"]) for row in json.loads(done.stdout)] == [True] * len(texts)
    out = tmp_path / "v.npz"
    done = run_cli("export", "embed", every_bundle, "--text=", "-o", out, "--json")
    printed = json.loads(done.stdout)
    assert done.returncode == 5 and len(printed["failed"]) == 1 and printed["embeddings"] == []
    assert not out.exists()


def test_a_command_that_the_bundle_lacks_is_an_error_that_names_those_it_has(
    run_cli, tiny_bundle: Path, picture: Path
) -> None:
    for words in ((), ("a red circle",)):
        done = run_cli("export", "classify", tiny_bundle, picture, *words)
        assert done.returncode == 2 and str(tiny_bundle) in done.stderr
        assert ("embed, ask, match" if words else "--label") in done.stderr and "embed_image" not in done.stderr


def test_a_name_with_a_line_break_cannot_forge_a_line(run_cli, tiny_bundle: Path, tmp_path: Path) -> None:
    paint(tmp_path / "pictures" / "a\nb: float32.png")
    done = run_cli("export", "embed", tiny_bundle, tmp_path / "pictures")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 1 and "a\\nb" in done.stdout
    (tmp_path / "pictures" / "a\nb: float32.png").write_text("not a picture")
    done = run_cli("export", "embed", tiny_bundle, tmp_path / "pictures")
    assert done.returncode == 5 and not any(line.startswith("b: float32") for line in done.stderr.splitlines())


def test_ask_and_match_go_on_after_a_bad_text(run_cli, tiny_bundle: Path, folder: Path) -> None:
    image = folder / "p1.png"
    for command, key in (("ask", "question"), ("match", "text")):
        done = run_cli("export", command, tiny_bundle, image, "what colour?", " ", "zzz", "--json")
        assert done.returncode == 5, done.stderr
        rows = json.loads(done.stdout)
        assert [row.get(key, row.get("source")) for row in rows] == ["what colour?", " ", "zzz"]
        assert ["error" in row for row in rows] == [False, True, False]
        assert "1 of 3" in done.stderr and "zzz" in done.stderr
    done = run_cli("export", "match", tiny_bundle, image, "what colour?", " ", "--strict")
    assert done.returncode == 5 and done.stdout == ""


def test_classify_and_explain_go_on_after_a_bad_text(run_cli, every_bundle: Path, folder: Path, tmp_path: Path) -> None:
    image, drawing = folder / "p1.png", tmp_path / "seen.png"
    done = run_cli("export", "classify", every_bundle, image, "", "red circle", "--json")
    assert done.returncode == 5, done.stderr
    assert ["error" in row for row in json.loads(done.stdout)] == [True, False]
    done = run_cli("export", "ask", every_bundle, image, "", "what colour?", "--explain", drawing)
    assert done.returncode == 5 and drawing.exists(), done.stderr


@pytest.mark.parametrize("kind", ["texts", "pictures"])
def test_ctrl_c_leaves_no_file(tiny_bundle: Path, tmp_path: Path, kind: str) -> None:
    """A file with a part of the vectors would look complete."""
    path, out = tmp_path / "texts.txt", tmp_path / "v.npz"
    path.write_text("red circle\n" * 200_000)
    # One file, given so often that decoding takes far longer than the test waits.
    pictures = [paint(tmp_path / "a.png")] * 6_000
    words = ("embed", tiny_bundle, *(pictures if kind == "pictures" else ("--texts", path)), "-o", out)
    command = [sys.executable, "-m", "simmim_export.cli", *map(str, words)]
    listening = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **listening)
    assert process.stderr is not None and "embed" in process.stderr.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in stderr
    assert not any(child.suffix in (".npz", ".tmp") for child in tmp_path.iterdir())


def test_a_batch_leaves_the_warning_filters_as_they_were(model) -> None:
    before = list(warnings.filters)
    bulk.embed(model, bulk.texts(["red"]))
    assert list(warnings.filters) == before
