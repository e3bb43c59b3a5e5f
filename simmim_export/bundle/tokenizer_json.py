"""The types of a tokenizer.json, which msgspec parses: every component that is allowed, with its fields and their ranges."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from simmim_export.bundle.tokenizer_patterns import Pattern

# The highest id, and how many special tokens may surround a text.
MAX_ID, MAX_SPECIALS = (1 << 21) - 1, 16

NULL = Raw(b"null")
Id = Annotated[int, Meta(ge=0, le=MAX_ID)]
Token = Annotated[str, Meta(max_length=1024)]
Piece = Annotated[str, Meta(min_length=1, max_length=64)]
Short = Annotated[str, Meta(max_length=256)]
Char = Annotated[str, Meta(min_length=1, max_length=1)]


class _Part(Struct, tag_field="type", forbid_unknown_fields=True):
    """A component. The name of its class is its ``type``."""


# -- normalizers -----------------------------------------------------------------------------------------------------------


class NFC(_Part):
    pass


class NFD(_Part):
    pass


class NFKC(_Part):
    pass


class NFKD(_Part):
    pass


class Lowercase(_Part):
    pass


class StripAccents(_Part):
    pass


class Nmt(_Part):
    pass


class ByteLevelNormalizer(_Part, tag="ByteLevel"):
    pass


class BertNormalizer(_Part):
    clean_text: bool
    handle_chinese_chars: bool
    strip_accents: bool | None
    lowercase: bool


class Strip(_Part):
    strip_left: bool
    strip_right: bool


class Precompiled(_Part):
    precompiled_charsmap: Annotated[str, Meta(max_length=4 << 20)]


class Replace(_Part):
    pattern: Pattern
    content: Short


class Prepend(_Part):
    prepend: Short


class NormalizerSequence(_Part, tag="Sequence"):
    normalizers: list[Normalizer]


Normalizer = (
    NFC
    | NFD
    | NFKC
    | NFKD
    | Lowercase
    | StripAccents
    | Nmt
    | ByteLevelNormalizer
    | BertNormalizer
    | Strip
    | Precompiled
    | Replace
    | Prepend
    | NormalizerSequence
)

# -- pre-tokenizers --------------------------------------------------------------------------------------------------------

Behavior = Literal["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]


class BertPreTokenizer(_Part):
    pass


class Whitespace(_Part):
    pass


class WhitespaceSplit(_Part):
    pass


class UnicodeScripts(_Part):
    pass


class ByteLevel(_Part):
    add_prefix_space: bool = True
    trim_offsets: bool = True
    use_regex: bool = True


class CharDelimiterSplit(_Part):
    delimiter: Char


class Digits(_Part):
    individual_digits: bool


class Punctuation(_Part):
    behavior: Behavior = "Isolated"


class Metaspace(_Part):
    replacement: Char
    prepend_scheme: Literal["always", "first", "never"] | UnsetType = UNSET
    split: bool | UnsetType = UNSET
    add_prefix_space: bool | UnsetType = UNSET
    str_rep: Short | UnsetType = UNSET


class Split(_Part):
    pattern: Pattern
    behavior: Behavior
    invert: bool


class PreTokenizerSequence(_Part, tag="Sequence"):
    pretokenizers: list[PreTokenizer]


PreTokenizer = (
    BertPreTokenizer
    | Whitespace
    | WhitespaceSplit
    | UnicodeScripts
    | ByteLevel
    | CharDelimiterSplit
    | Digits
    | Punctuation
    | Metaspace
    | Split
    | PreTokenizerSequence
)

# -- models ----------------------------------------------------------------------------------------------------------------


class WordLevel(_Part):
    vocab: dict[Token, Id]
    unk_token: Token


class WordPiece(_Part):
    vocab: dict[Token, Id]
    unk_token: Token
    continuing_subword_prefix: Short
    # The time grows with the square of it. Public tokenizers have 100.
    max_input_chars_per_word: Annotated[int, Meta(ge=1, le=100)]


class BPE(_Part):
    vocab: dict[Token, Id]
    merges: Annotated[list[str | tuple[Token, Token]], Meta(max_length=1 << 20)]
    # With dropout, the same text would give other tokens each time.
    dropout: None = None
    unk_token: Token | None = None
    continuing_subword_prefix: Short | None = None
    end_of_word_suffix: Short | None = None
    fuse_unk: bool = False
    byte_fallback: bool = False
    ignore_merges: bool = False


class Unigram(_Part):
    vocab: list[tuple[Piece, Annotated[float, Meta(ge=-1e6, le=1e6)]]]
    unk_id: Id | None = None
    byte_fallback: bool = False


Model = WordLevel | WordPiece | BPE | Unigram

# -- what adds special tokens ----------------------------------------------------------------------------------------------


class TypedId(Struct, forbid_unknown_fields=True):
    id: Token
    type_id: Annotated[int, Meta(ge=0, le=1)]


class TemplatePiece(Struct, forbid_unknown_fields=True):
    SpecialToken: TypedId | UnsetType = UNSET
    Sequence: TypedId | UnsetType = UNSET

    def __post_init__(self) -> None:
        if (self.SpecialToken is UNSET) == (self.Sequence is UNSET):
            raise ValueError("a piece of a template is either a SpecialToken or a Sequence")


class Special(Struct, forbid_unknown_fields=True):
    id: Token
    ids: Annotated[list[Id], Meta(min_length=1, max_length=MAX_SPECIALS)]
    tokens: Annotated[list[Token], Meta(min_length=1, max_length=MAX_SPECIALS)]


class TemplateProcessing(_Part):
    single: Annotated[list[TemplatePiece], Meta(max_length=MAX_SPECIALS + 1)]
    special_tokens: Annotated[dict[Token, Special], Meta(max_length=64)]
    # Never used: this project tokenizes one text at a time.
    pair: Raw = NULL


class BertProcessing(_Part):
    sep: tuple[Token, Id]
    cls: tuple[Token, Id]


class RobertaProcessing(_Part):
    sep: tuple[Token, Id]
    cls: tuple[Token, Id]
    trim_offsets: bool
    add_prefix_space: bool


class ProcessorSequence(_Part, tag="Sequence"):
    processors: list[PostProcessor]


PostProcessor = TemplateProcessing | BertProcessing | RobertaProcessing | ByteLevel | ProcessorSequence

# -- the file --------------------------------------------------------------------------------------------------------------


class AddedToken(Struct, forbid_unknown_fields=True):
    id: Id
    content: Annotated[str, Meta(min_length=1, max_length=256)]
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    special: bool


class TokenizerFile(Struct, forbid_unknown_fields=True):
    model: Model
    version: Literal["1.0"] = "1.0"
    truncation: Raw = NULL
    padding: Raw = NULL
    added_tokens: Annotated[list[AddedToken], Meta(max_length=20_000)] = []
    normalizer: Normalizer | None = None
    pre_tokenizer: PreTokenizer | None = None
    post_processor: PostProcessor | None = None
    decoder: Raw = NULL
