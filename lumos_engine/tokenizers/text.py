"""Text to ids and back: a thin front of the ``tokenizers`` library, and the training of a byte-level BPE."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from ..io.atomic import write_bytes_atomic
from .prompt import build_prompt

__all__ = ["TextTokenizer", "prompt_corpus", "train_bpe"]

# The constant pieces of the prompt, so that each can become one token; then single digits, words and the rest, each with
# the blank before it. Longer alternatives come first: the first that matches wins.
_PIECES = (
    r"Generate a video with a resolution of|, consisting of| frames at"
    r"| frames per second, according to the following prompt:\n"
    r"| ?\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"
)
_MAX_BYTES = 64 << 20


class TextTokenizer:
    """Ids of text, without any token added at either end.

    Args:
        tokenizer: of the ``tokenizers`` library. Its special tokens are never read out of text: a caption that spells one
            is encoded as the characters it consists of.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        tokenizer.encode_special_tokens = True

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> TextTokenizer:
        """Load a ``tokenizers`` JSON file. Raises FileNotFoundError, or ValueError when it is not one or above 64 MiB."""
        with open(path, "rb") as file:
            text = file.read(_MAX_BYTES + 1)
        if len(text) > _MAX_BYTES:
            raise ValueError(f"{path} has more than {_MAX_BYTES} bytes, which no tokenizer file has")
        try:
            return cls(Tokenizer.from_str(text.decode()))
        except BaseException as error:  # the library raises bare Exception, and its panics are not even that
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            raise ValueError(
                f"{path} is not a tokenizer file of the tokenizers library: {' '.join(str(error).split())}"
            ) from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file, whole or not at all. Raises OSError."""
        write_bytes_atomic(path, (self._tokenizer.to_str(pretty=False) + "\n").encode())

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included."""
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``. Raises ValueError for text that UTF-8 cannot hold (lone surrogates)."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"text must be valid Unicode, got a lone surrogate at character {error.start}") from None
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``; special tokens are left out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def tokens(self, text: str) -> list[str]:
        """The pieces into which ``text`` is cut, one per id."""
        return [self.decode([i]) for i in self.encode(text)]


def train_bpe(texts: Iterable[str], special_tokens: Sequence[str], max_vocabulary: int) -> TextTokenizer:
    """A byte-level BPE in which ``special_tokens`` have the ids ``0..len-1`` and every byte has one, so that any text encodes.

    Merges stay within the constant pieces of the prompt template, single digits, words with the blank before them, and
    runs of other characters.

    Args:
        texts: whole prompts as the model will see them, see :func:`prompt_corpus`.
        max_vocabulary: bound of the number of ids, such as the ``visual_begin`` of the vocabulary.

    Raises:
        ValueError: special tokens repeat, or ``max_vocabulary`` has no room for them and the 256 bytes.
    """
    if len(set(special_tokens)) != len(special_tokens):
        raise ValueError("special_tokens must all be different")
    least = len(special_tokens) + 256
    if max_vocabulary < least:
        raise ValueError(
            f"max_vocabulary must be at least {least} (special tokens and 256 bytes), got {max_vocabulary}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=max_vocabulary,
        special_tokens=list(special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return TextTokenizer(tokenizer)


def special_token_names(number_tokens: int = 32) -> list[str]:
    """Names of ids 0.. of the shipped vocabulary: the control tokens in its order, then the numbers of sizes, durations and rates."""
    control = ["bos", "image_start", "image_end", "sep", "newline", "video_start", "video_end", "mask"]
    return [f"<|{name}|>" for name in control] + [f"<|number_{n}|>" for n in range(number_tokens)]


def prompt_corpus(captions: Iterable[str], seed: int = 0) -> Iterator[str]:
    """Each caption in the prompt of a clip or image of random size and rate, for :func:`train_bpe`; seeded."""
    random_number = random.Random(seed)
    for caption in captions:
        width, height = (32 * random_number.randint(1, 31) for _ in range(2))
        num_frames = 1 + 4 * random_number.randint(0, 24)
        yield build_prompt(caption, width, height, num_frames, random_number.randint(1, 30))
