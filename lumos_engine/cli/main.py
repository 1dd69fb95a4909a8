"""``lumos``: dispatch to the subcommands.

Each subcommand is a module of this package with ``main(argv) -> int``; only the chosen one is imported, so that ``lumos --help``
and the error of a mistyped command appear at once. Mistakes of the user end in one line on stderr and exit code 2;
``LUMOS_DEBUG=1`` shows the traceback instead.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from ..memory import keep_freed_memory

COMMANDS = {
    "generate": "text, image or clip to video or image",
    "train": "train a model from a YAML file: lumos train config.yaml [--section.option value ...]",
    "tokenizer": "train a visual tokenizer: lumos tokenizer train DATA --out FOLDER",
    "eval": "evaluate a model: lumos eval digits",
    "demo": "generate a page of clips with the shipped model",
    "doctor": "versions, backends, instruction sets; what is missing and how to get it",
}
USAGE_ERROR = 2
INTERRUPTED = 130


def _help() -> str:
    rows = "\n".join(f"  {name:<10} {text}" for name, text in COMMANDS.items())
    return f"usage: lumos COMMAND [options]\n\ncommands:\n{rows}\n\n'lumos COMMAND --help' shows the options of a command.\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``lumos`` with ``argv`` (default: the process's arguments) and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help(), end="")
        return 0 if arguments else USAGE_ERROR
    if arguments[0] in ("-V", "--version"):
        from .. import __version__

        print(f"lumos_engine {__version__}")
        return 0
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known commands: {', '.join(COMMANDS)}"
        print(f"lumos: unknown command {command!r}; {hint}", file=sys.stderr)
        return USAGE_ERROR
    keep_freed_memory()
    try:
        return int(importlib.import_module(f".{command}", __package__).main(rest))
    except KeyboardInterrupt:
        print("lumos: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away (`lumos ... | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if os.environ.get("LUMOS_DEBUG"):
            raise
        print(f"lumos {command}: {error}", file=sys.stderr)
        return USAGE_ERROR


if __name__ == "__main__":
    sys.exit(main())
