"""Which barriers, waits and commits of a kernel would nobody miss? Each is left out in turn, and the machine looks.

Synchronisation that can be left out unnoticed is superfluous, or the calls did not need it, or the machine is blind for it: a
measure of kernels, tests and machine alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from . import emulation


def undetected_deletions(
    run: Callable[[], object],
    kernel: str,
    synchronisations: Iterable[dict[str, Any]],
    seeds: Sequence[int | None] = (None, 1, 2),
) -> list[dict[str, Any]]:
    """Run once for each synchronising instruction, without it.

    Args:
        run: launches ``kernel`` and raises if something is wrong: a ``KernelFault``, or an ``AssertionError`` for an
            answer that is not what it was.
        synchronisations: those to leave out, as ``Module.synchronisations(kernel)`` lists them.
        seeds: schedules under which each deletion is looked for, see ``ptxvm``.

    Returns:
        Those after whose deletion ``run`` raised nothing under any schedule.
    """

    def unnoticed(index: int) -> bool:
        try:
            for seed in seeds:
                with emulation.ptxvm(seed, skip_kernel=kernel, skip_instruction=index):
                    run()
        except (emulation.KernelFault, AssertionError):
            return False
        return True

    return [each for each in synchronisations if unnoticed(each["index"])]
