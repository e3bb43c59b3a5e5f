"""Pictures that several threads decode ahead: the same pixels, errors and warnings, in order, and no thread left behind."""

from __future__ import annotations

import os
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from example_pictures import SMALL, animation, encoded, photographs, smooth, tiff_of_pages
from PIL import Image

from simmim_export.errors import ImageError
from simmim_export.runtime.images import decoded, load_pixels
from simmim_export.runtime.picture_files import Room


def decoding_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_threads_give_the_same_pixels_as_none(tmp_path: Path) -> None:
    """Also for one PIL image given several times, which two threads must not decode."""
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(smooth()), "PNG"))
    lazy = Image.open(photographs()[1])
    sources = [path, photographs()[0].read_bytes(), smooth(), lazy, lazy, str(path), photographs()[1]] * 3
    expected = load_pixels(sources, SMALL)
    lazy = Image.open(photographs()[1])
    again = [lazy if isinstance(source, Image.Image) else source for source in sources]
    np.testing.assert_array_equal(load_pixels(again, SMALL, threads=4), expected)
    assert not decoding_threads()


def test_a_bad_picture_fails_in_its_turn_and_the_others_are_decoded() -> None:
    good = encoded(Image.fromarray(smooth()), "PNG")
    sources = [good, b"bad", good, good[: len(good) // 2], good]
    outcomes = []
    with decoded(sources, SMALL, threads=3, ahead=5) as attempts:
        for attempt in attempts:
            try:
                outcomes.append(attempt().shape)
            except ImageError as error:
                outcomes.append(error.where)
    assert outcomes == [(32, 48, 3), "bytes", (32, 48, 3), "bytes", (32, 48, 3)] and not decoding_threads()
    with pytest.raises(ImageError):
        load_pixels(sources, SMALL, threads=3)
    assert not decoding_threads()


def test_no_thread_is_left_if_the_caller_stops_early() -> None:
    good = encoded(Image.fromarray(smooth()), "PNG")
    with pytest.raises(KeyboardInterrupt), decoded([good] * 50, SMALL, threads=3, ahead=50) as attempts:
        next(attempts)()
        raise KeyboardInterrupt
    assert not decoding_threads()


def test_only_a_few_pictures_are_decoded_ahead(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(smooth()), "PNG"))
    started = []

    class Watched(os.PathLike):
        def __fspath__(self) -> str:
            started.append(self)
            return str(tmp_path / "a.png")

    with decoded([Watched() for _ in range(20)], SMALL, threads=3, ahead=4) as attempts:
        for number, attempt in enumerate(attempts, start=1):
            attempt()
            assert len(started) <= number + 4
    assert len(started) == 20


def test_warnings_come_in_order_and_in_the_callers_thread() -> None:
    sources = [animation("GIF"), encoded(Image.fromarray(smooth()), "PNG"), tiff_of_pages(3), tiff_of_pages(4)]
    threads = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        show = warnings.showwarning
        warnings.showwarning = lambda *args, **options: (threads.append(threading.current_thread()), show(*args))
        load_pixels(sources, SMALL, threads=3)
    assert [str(warning.message).split(" of ")[1][0] for warning in caught] == ["3", "3", "4"]
    assert set(threads) <= {threading.current_thread()}


def test_threads_hold_no_more_than_the_room_has() -> None:
    """And more than the room has is held alone, so that nobody waits forever."""
    room, lock = Room(10), threading.Lock()
    held: list[int] = []
    most: list[list[int]] = []

    def hold(amount: int) -> None:
        with room.holding(amount):
            with lock:
                held.append(amount)
                most.append(list(held))
            time.sleep(0.002)
            with lock:
                held.remove(amount)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, [3, 4, 5, 25, 1, 10, 2, 7, 6, 11] * 5))
    assert all(sum(amounts) <= 10 or len(amounts) == 1 for amounts in most)
    assert max(map(len, most)) > 1 and not held
