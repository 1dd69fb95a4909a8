"""Which barriers, waits and commits of a kernel would nobody miss? Each is left out in turn, and the machine looks.

What can be left out unnoticed is superfluous, or no call needed it, or the machine is blind there: a measure of kernels, tests
and machine alike.
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
    **options: Any,
) -> list[dict[str, Any]]:
    """Leave out each synchronising instruction that ``run`` executes, and list those that nobody missed.

    Args:
        run: launches ``kernel`` and raises if something is wrong: the machine a ``KernelFault``, ``run`` itself an
            ``AssertionError`` for a wrong answer.
        synchronisations: of the kernel, as ``Module.synchronisations`` lists them.
        seeds, options: each deletion is looked for under all of these schedules, see ``ptxvm``.

    Returns:
        Those without which ``run`` raised nothing under any schedule.

    Raises:
        whatever ``run`` raises when nothing is left out.
    """
    executed: set[int] = set()
    for seed in seeds:
        with emulation.ptxvm(seed, **options) as machine:
            run()
            for launch in machine.launches:
                if launch["kernel"] == kernel:
                    executed.update(index for index, times in launch["synchronisations"] if times)

    def missed(index: int) -> bool:
        try:
            for seed in seeds:
                with emulation.ptxvm(seed, skip_kernel=kernel, skip_instruction=index, **options):
                    run()
        except (emulation.KernelFault, AssertionError):
            return True
        return False

    return [each for each in synchronisations if each["index"] in executed and not missed(each["index"])]
