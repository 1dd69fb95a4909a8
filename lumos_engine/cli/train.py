"""``lumos train CONFIG [--resume] [--section.option value ...]``.

CONFIG is a YAML file, or the name of one that comes with the package (``moving_digits``). The run's folder (``train.out``) receives the
resolved configuration, ``train.jsonl``, checkpoints, and the model so far in ``model/``; one process at a time may write there.

Exit codes: 0 at the end of the run and after SIGTERM, 130 after Ctrl-C (both save first), 2 for a mistake or a failure.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..train.config import TrainConfig

_CONFIGS = Path(__file__).parents[1] / "configs"


def main(argv: Sequence[str]) -> int:
    """Run ``lumos train`` with ``argv`` and return the exit code."""
    arguments = list(argv)
    if not arguments or {"-h", "--help"} & set(arguments):
        print(_help())
        return 0 if arguments else 2
    resume = "--resume" in arguments
    quiet = "--quiet" in arguments
    arguments = [argument for argument in arguments if argument not in ("--resume", "--quiet")]
    if not arguments or arguments[0].startswith("--"):
        raise ValueError("the first argument must be a configuration file; see lumos train --help")

    # oneDNN keeps what it prepares for each size of a product; 1024 of them, its default, grow to gigabytes over a run.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    from ..train.config import load_config

    try:
        config = load_config(_find(arguments[0]), arguments[1:])
    except TypeError as error:  # an option of the wrong type is the user's mistake, not ours
        raise ValueError(str(error)) from None

    from ..io.lock import owned_folder

    with owned_folder(Path(config.train.out)):
        return _run(config, resume, quiet)


def _run(config: TrainConfig, resume: bool, quiet: bool) -> int:
    from ..io.atomic import write_json_atomic
    from ..train.curve import training_curve
    from ..train.progress import EncodingBar, JsonLog, Listener, ProgressBar, TensorBoardLog
    from ..train.trainer import Trainer

    with nullcontext() if quiet else EncodingBar() as on_encode:
        trainer = Trainer(config, resume=resume, on_encode=on_encode)
    with ExitStack() as stack:
        listeners: list[Listener] = []
        kinds: list[Callable[[], Listener]] = [lambda: JsonLog(trainer.out / "train.jsonl", trainer.step)]
        if config.train.tensorboard:
            kinds.append(lambda: TensorBoardLog(trainer.out / "tensorboard"))
        if not quiet:
            kinds.append(ProgressBar)
        for make in kinds:  # each is closed even where making the next one fails
            listeners.append(make())
            stack.callback(listeners[-1].close)
        received = trainer.run(listeners)
    log = trainer.out / "train.jsonl"
    if log.stat().st_size:
        write_json_atomic(trainer.out / "model" / "training.json", training_curve(log))
    if received is not None:
        print(f"lumos train: saved step {trainer.step} in {trainer.out}; --resume continues", file=sys.stderr)
    else:
        print(f"{trainer.out}: {trainer.step} steps done, the model is in {trainer.out / 'model'}")
    return 130 if received == signal.SIGINT else 0


def _find(name: str) -> Path:
    shipped = _CONFIGS / f"{name}.yaml"
    return shipped if not Path(name).exists() and Path(name).name == name and shipped.is_file() else Path(name)


def _help() -> str:
    from ..train.config import describe_options

    return (
        "usage: lumos train CONFIG [--resume] [--quiet] [--section.option value ...]\n\n"
        f"CONFIG is a YAML file or one of: {', '.join(sorted(p.stem for p in _CONFIGS.glob('*.yaml')))}.\n"
        "--resume continues the run in train.out from its newest whole checkpoint; --quiet shows no progress bar.\n"
        "Exit codes: 0 at the end and after SIGTERM, 130 after Ctrl-C (both save first), 2 on failure.\n\n"
        f"options and defaults:\n{describe_options()}"
    )
