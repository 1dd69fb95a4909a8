"""``lumos tokenizer train DATA --out FOLDER`` and ``lumos tokenizer text --out FILE``.

The shipped tokenizers are made by::

    lumos tokenizer train moving-digits --out visual_tokenizer --foreground-weight 5 --weights bf16 --threads 1
    lumos tokenizer text --out text_tokenizer.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ..tokenizers.train import TokenizerTrainConfig, TrainProgress, train_tokenizer

if TYPE_CHECKING:
    from rich.progress import Progress

INTERRUPTED = 130


@dataclass
class Train:
    """Train a visual tokenizer (causal autoencoder with finite scalar quantisation).

    Writes config.json and model.safetensors to the folder at each evaluation, at the end and on Ctrl-C, the log to
    train.jsonl and the result to training.json.
    """

    data: tyro.conf.Positional[str]
    """"moving-digits", or a folder of videos and images"""
    out: str
    """folder for the tokenizer"""
    config: Annotated[TokenizerTrainConfig, tyro.conf.arg(name="")] = field(default_factory=TokenizerTrainConfig)
    threads: int = 0
    """CPU threads; 0 leaves the choice to torch"""
    json: bool = False
    """print the result as JSON instead of a progress bar and a sentence"""

    def run(self) -> int:
        import torch

        if self.threads < 0:
            raise ValueError(f"threads must be 0 or more, got {self.threads}")
        if self.threads:
            torch.set_num_threads(self.threads)
        try:
            if self.json:
                report = train_tokenizer(self.data, self.out, self.config)
            else:
                with _progress_bar() as bar:
                    report = train_tokenizer(self.data, self.out, self.config, _Display(bar))
        except KeyboardInterrupt:
            print(f"lumos tokenizer: interrupted; the tokenizer so far is in {self.out}", file=sys.stderr)
            return INTERRUPTED
        if self.json:
            print(json.dumps(asdict(report)))
        else:
            print(
                f"{self.out}: {report.psnr:.2f} dB on held-back clips ({report.pooled_psnr:.2f} dB pooled), {report.codes_used} of "
                f"{report.num_codes} codes used, the most common one on {report.most_common_share:.0%} of positions"
            )
        return 0


@dataclass
class Text:
    """Train the byte-level BPE of the moving-digits captions in the prompt template."""

    out: str
    """file for the tokenizer (JSON of the tokenizers library)"""
    captions: int = 4000
    """captions to train on"""
    number_tokens: int = 32
    """number tokens of the vocabulary, after the 8 control tokens"""
    max_vocabulary: int = 512
    """bound of the ids: where the visual codes begin"""

    def run(self) -> int:
        from ..data import MovingDigits
        from ..tokenizers.text import prompt_corpus, special_token_names, train_bpe

        captions = MovingDigits(num_clips=self.captions, pairs="all").batch(range(self.captions)).captions
        tokenizer = train_bpe(prompt_corpus(captions), special_token_names(self.number_tokens), self.max_vocabulary)
        tokenizer.save(self.out)
        print(f"{self.out}: {tokenizer.vocab_size} ids")
        return 0


def main(argv: Sequence[str]) -> int:
    """Run ``lumos tokenizer`` with ``argv`` and return the exit code."""
    commands: dict[str, Callable[..., Any]] = {"train": Train, "text": Text}
    return tyro.extras.subcommand_cli_from_dict(
        commands, args=list(argv), prog="lumos tokenizer", description=__doc__
    ).run()


def _progress_bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))


class _Display:
    """Moves the bar; evaluations stay as lines above it."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("training", total=1.0)

    def __call__(self, progress: TrainProgress) -> None:
        text = f"step {progress.step}  loss {progress.loss:.4f}  {progress.clips_per_second:.0f} clips/s"
        self._bar.update(self._task, completed=progress.fraction, description=text)
        if progress.report:
            self._bar.console.print(f"step {progress.step}: {progress.report.psnr:.2f} dB on held-back clips")
