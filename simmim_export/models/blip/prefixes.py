"""The answers that BLIP ranks as a tree of token prefixes, and the limits of such a list. PyTorch is not needed for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from simmim_export.errors import TextError, UsageError

# The characters of a label in a bundle.
MOST_CHARACTERS = 1024
# The most numbers in a tensor of the decoder at the largest batch: 2 GiB in FP32.
MOST_NUMBERS = 1 << 29


@dataclass(frozen=True, eq=False, kw_only=True)
class Prefixes:
    """All different prefixes of A answers: N of them, the first of which holds only the token that begins an answer.

    ``ids`` int64 [N] is the last token of each, and ``positions`` int64 [N] its place. ``sees`` bool [N, N] says which prefixes a
    prefix begins with, itself included. For each answer and each of its steps, ``prefix`` int64 [A, steps] is what has been
    read, ``token`` int64 [A, steps] is what comes next, and ``mask`` float32 [A, steps] is 1, or 0 after its end.
    """

    ids: np.ndarray
    positions: np.ndarray
    sees: np.ndarray
    prefix: np.ndarray
    token: np.ndarray
    mask: np.ndarray

    @classmethod
    def of(cls, answers: Sequence[Sequence[int]], *, begin: int, end: int) -> Prefixes:
        """The prefixes of ``answers``, lists of token ids that lie between ``begin`` and ``end``."""
        known: dict[tuple[int, ...], int] = {(begin,): 0}
        steps = max(map(len, answers)) + 1
        prefix, token = np.zeros((2, len(answers), steps), np.int64)
        mask = np.zeros((len(answers), steps), np.float32)
        for row, answer in enumerate(answers):
            for step, following in enumerate((*answer, end)):
                read = (begin, *answer[:step])
                prefix[row, step] = known.setdefault(read, len(known))
                token[row, step], mask[row, step] = following, 1
        sees = np.zeros((len(known), len(known)), bool)
        for read, index in known.items():
            sees[index, [known[read[:length]] for length in range(1, len(read) + 1)]] = True
        return cls(
            ids=np.array([read[-1] for read in known], np.int64),
            positions=np.array([len(read) - 1 for read in known], np.int64),
            sees=sees,
            prefix=prefix,
            token=token,
            mask=mask,
        )


def tokens_of(answers: Sequence[str], tokenizer: Tokenizer, *, longest: int) -> list[list[int]]:
    """The token ids of each answer, without special tokens.

    Raise :class:`TextError`, which counts answers from 1, for one that is empty or not UTF-8, is too long for a label or for the
    ``longest`` text of the decoder (two special tokens included), has a word that the tokenizer does not know, or has the tokens
    of another.
    """
    unknown = getattr(tokenizer.model, "unk_token", None)
    rows, seen = list[list[int]](), dict[tuple[int, ...], int]()
    for number, answer in enumerate(answers, start=1):
        where = f"answer {number}: {answer[:40]!r}"
        if not answer.strip():
            raise TextError("an answer is empty", where=where, fix="give each answer one word or more")
        if len(answer) > MOST_CHARACTERS:
            what = f"an answer has {len(answer):,} characters; the limit is {MOST_CHARACTERS:,}"
            raise TextError(what, where=where, fix="shorten it")
        try:
            answer.encode("utf-8")
        except UnicodeEncodeError as error:
            what = f"an answer is not UTF-8 at character {error.start}"
            raise TextError(what, where=where, fix="encode it as UTF-8") from error
        encoding = tokenizer.encode(answer, add_special_tokens=False)
        if not encoding.ids or unknown in encoding.tokens:
            raise TextError("an answer has words that the model does not know", where=where, fix="use other words")
        if len(encoding.ids) + 2 > longest:
            what = f"an answer has {len(encoding.ids) + 2} tokens; the model reads {longest}"
            raise TextError(what, where=where, fix="shorten it")
        if (first := seen.setdefault(tuple(encoding.ids), number)) != number:
            what = f"the model reads an answer like answer {first}, {answers[first - 1][:40]!r}"
            raise TextError(what, where=where, fix="leave out one of them")
        rows.append(encoding.ids)
    return rows


def check_size(prefixes: Prefixes, *, max_batch: int, vocabulary: int, heads: int) -> None:
    """Raise :class:`UsageError` if a tensor of the decoder would have more than :data:`MOST_NUMBERS` numbers.

    A row of the batch has N x ``vocabulary`` log-probabilities, and N x N scores in each of ``heads``.
    """
    count = len(prefixes.ids)
    row = count * max(vocabulary, heads * count)
    if row * max_batch <= MOST_NUMBERS:
        return
    what = (
        f"{len(prefixes.mask):,} answers, with {count:,} different beginnings, take tensors of"
        f" {row * max_batch * 4 / 2**30:.1f} GiB at --max-batch {max_batch}; the limit is {MOST_NUMBERS * 4 >> 30} GiB"
    )
    fits = MOST_NUMBERS // row
    fix = f"add --max-batch {fits}, or give fewer answers" if fits > 1 else "give fewer answers"
    raise UsageError(what, fix=fix)
