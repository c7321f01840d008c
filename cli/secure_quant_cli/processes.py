"""Processes of one machine that stand for hosts: which cores each has, and what it costs as Linux
counts it in /proc (None without it)."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["bind_to_half", "cpu_seconds", "descendants", "peak_memory"]


def bind_to_half(pid: int, half: int) -> None:
    """Let a process that just started (0: this one), and what it will start, run on one half of the
    cores alone, 0 or 1.

    Two parties on one machine would otherwise meet on one core: whoever gets a message from a
    process that then goes on computing is put beside it. Does nothing with one core, or where the
    system cannot do it.
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        middle = (len(cores) + 1) // 2
        with suppress(ProcessLookupError):  # it ended at once; whoever waits for it will say so
            os.sched_setaffinity(pid, cores[middle:] if half else cores[:middle])


def descendants(pid: int) -> list[int]:
    """Children of a process, theirs, and so on; [] if it has gone."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(each) for each in task.read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *descendants(child)]
    return found


def peak_memory(pid: int) -> int | None:
    """Peak resident bytes of a process and its descendants together."""
    total = 0
    for each in (pid, *descendants(pid)):
        try:
            status = Path(f"/proc/{each}/status").read_text()
        except OSError:
            if each == pid:
                return None
            continue
        total += sum(
            int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")
        )
    return total


def cpu_seconds(pid: int) -> float | None:
    """User and system time of one process so far, children that it waited for included; counted in
    ticks of the system, usually 10 ms. See proc(5), ``stat``, fields 14 to 17."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    after_name = stat.rpartition(")")[2].split()  # a name may hold spaces; field 3 comes next
    return sum(map(int, after_name[11:15])) / os.sysconf("SC_CLK_TCK")
