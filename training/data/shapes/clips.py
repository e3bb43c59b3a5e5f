"""`clips`: moving things of `shapes`, for tasks in which time matters.

A clip has two or three things. One or two of them move by a cell and a half or more, the others stand still. The
questions ask which way a thing moves (direction), which thing moves (mover), and whether one starts before another
(order). Opposite directions show the same frames in reverse, so the mean over frames, a single frame and shuffled
frames cannot tell them apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from random import Random
from typing import NamedTuple

import numpy as np

from simmim_export.training.data.base import EVERYTHING, Batch, Data, Labeled, Want, filled, nothing
from simmim_export.training.data.shapes.draw import draw_scene
from simmim_export.training.data.shapes.scene import COLORS, GRID, SHAPES, Scene, Thing
from simmim_export.training.data.shapes.words import describe_thing, vocabulary

FRAMES = 8
DIRECTIONS = ("left", "right", "up", "down")
FAMILIES = ("direction", "mover", "order")
ANSWERS = (*DIRECTIONS, "yes", "no", *COLORS, *SHAPES)
_STEPS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}


class Motion(NamedTuple):
    """A move in ``direction`` by ``cells`` grid cells, from frame ``first`` to frame ``last``."""

    direction: str
    cells: float
    first: int
    last: int


class Clip(NamedTuple):
    """The things at the start, and the motion of each (None: it stands still)."""

    scene: Scene
    motions: tuple[Motion | None, ...]

    def at(self, frame: int) -> Scene:
        """The scene in frame number ``frame``."""
        moved = []
        for thing, motion in zip(self.scene.things, self.motions, strict=True):
            if motion is not None:
                done = min(max((frame - motion.first) / (motion.last - motion.first), 0.0), 1.0)
                dy, dx = _STEPS[motion.direction]
                thing = thing._replace(
                    row=thing.row + dy * motion.cells * done,
                    column=thing.column + dx * motion.cells * done,
                )
            moved.append(thing)
        return Scene(tuple(moved), self.scene.background)


def sample_clip(random: Random, movers: int) -> Clip:
    """A random clip of ``movers`` + 1 things of different colors and shapes, each in a lane of its own."""
    count = movers + 1
    shapes, colors = random.sample(range(len(SHAPES)), count), random.sample(range(len(COLORS)), count)
    lanes = random.sample(range(GRID), count)
    starts = random.sample((0, 3), 2) if movers == 2 else [0]
    things, motions = [], []
    sideways = random.random() < 0.5
    for index in range(count):
        along, motion = float(int(random.random() * GRID)), None
        if index < movers:
            cells = 1.5 + 1.5 * random.random()
            forward, slack = random.random() < 0.5, random.random() * (GRID - 1 - cells)
            along = slack if forward else GRID - 1 - slack
            direction = ("right" if forward else "left") if sideways else ("down" if forward else "up")
            last = starts[index] + 4 if movers == 2 else FRAMES - 1
            motion = Motion(direction, cells, starts[index], last)
        row, column = (lanes[index], along) if sideways else (along, lanes[index])
        jitter = (random.uniform(-1, 1), random.uniform(-1, 1))
        size, texture = int(random.random() * 2), int(random.random() * 2)
        things.append(Thing(size, texture, colors[index], shapes[index], row, column, *jitter))
        motions.append(motion)
    return Clip(Scene(tuple(things), random.getrandbits(32)), tuple(motions))


def _ask(clip: Clip, random: Random, family: str) -> tuple[str, str]:
    """A question of ``family`` and its answer. ``order`` needs a clip with two movers."""
    moving = [(t, m) for t, m in zip(clip.scene.things, clip.motions, strict=True) if m is not None]
    thing, motion = random.choice(moving)
    if family == "direction":
        name = describe_thing(thing, random.choice((("colour",), ("shape",), ("colour", "shape"))))
        return f"which way does the {name} move?", motion.direction
    if family == "mover":
        attribute, values = random.choice((("colour", COLORS), ("shape", SHAPES)))
        when = ("first" if motion.first == min(m.first for _, m in moving) else "last") if len(moving) > 1 else ""
        text = f"what {attribute} is the thing that moves {when}".strip()
        return f"{text}?", values[getattr(thing, attribute)]
    other, later = next(pair for pair in moving if pair[0] is not thing)
    names = [describe_thing(t, ("colour", "shape")) for t in (thing, other)]
    return f"does the {names[0]} move before the {names[1]}?", "yes" if motion.first < later.first else "no"


@dataclass(frozen=True)
class Clips(Data):
    """The data set for one seed and stream. ``size`` is in pixels; a clip has :data:`FRAMES` frames."""

    seed: int = 0
    stream: str = "train"
    _: KW_ONLY
    size: int = 64
    questions_per_clip: int = 4

    name = "clips"

    @property
    def families(self) -> Sequence[str]:
        """direction, mover and order."""
        return FAMILIES

    @property
    def labels(self) -> Mapping[str, Sequence[str]]:
        """video_class and video_qa."""
        return {"video_class": DIRECTIONS, "video_qa": ANSWERS}

    def on(self, stream: str) -> Clips:
        return replace(self, stream=stream)

    def describe(self) -> dict[str, object]:
        return {"name": self.name, "seed": self.seed, "stream": self.stream, "size": self.size, "frames": FRAMES}

    def _random(self, what: str, index: int, clips: int) -> Random:
        key = f"clips/1/{self.seed}/{self.stream}/{what}/{clips}/{index}"
        return Random(int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "big"))

    def _draw(self, clips: Sequence[Clip]) -> np.ndarray:
        return np.stack([[draw_scene(clip.at(frame), self.size) for frame in range(FRAMES)] for clip in clips])

    def batch(self, index: int, images: int, *, want: Want = EVERYTHING) -> Batch:
        """Clips with one or two movers, and questions about them; see :class:`Batch`."""
        random = self._random("questions", index, images)
        clips = [sample_clip(random, 1 + (random.random() < 0.5)) for _ in range(images)]
        asked = []
        for clip in clips:
            kinds = [name for name in want.families or FAMILIES if name != "order" or sum(map(bool, clip.motions)) == 2]
            chosen = [kinds[i % len(kinds)] for i in range(self.questions_per_clip)]
            row = [(*_ask(clip, random, kind), kind) for kind in chosen]
            asked.append(list(dict.fromkeys(row)) if want.every else row)
        return Batch(
            pixels=self._draw(clips) if want.pixels else nothing(self.size),
            questions=[[text for text, _, _ in row] for row in asked],
            answers=filled([[ANSWERS.index(answer) for _, answer, _ in row] for row in asked]),
            families=filled([[FAMILIES.index(kind) for _, _, kind in row] for row in asked]),
            keys=[str(number) for number in range(index * images, (index + 1) * images)],
        )

    def labeled(self, index: int, images: int, *, want: Want = EVERYTHING) -> Labeled:
        """Clips with one mover, and its direction."""
        random = self._random("direction", index, images)
        clips = [sample_clip(random, 1) for _ in range(images)]
        labels = [DIRECTIONS.index(next(m.direction for m in clip.motions if m is not None)) for clip in clips]
        return Labeled(self._draw(clips) if want.pixels else nothing(self.size), np.array(labels, np.int64))

    def words(self) -> list[str]:
        return vocabulary()

    def samples(self, count: int) -> tuple[np.ndarray, list[str]]:
        """The frames of clips as separate images, and questions about the clips."""
        batch = self.batch(0, -(-count // self.questions_per_clip))
        pixels = batch.pixels.reshape(-1, *batch.pixels.shape[2:])[:count]
        return pixels, [text for row in batch.questions for text in row][:count]
