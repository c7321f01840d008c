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
    """Peak resident bytes of a process and its descendants together; pages that several processes
    share, as a template's with its workers, count once: each has its share of them (PSS)."""
    total = 0
    for each in (pid, *descendants(pid)):
        peak = _kilobytes(each, "status").get("VmHWM")
        if peak is None and each == pid:
            return None
        now = _kilobytes(each, "smaps_rollup")  # not everywhere
        total += (peak or 0) - now.get("Rss", 0) + now.get("Pss", 0)
    return 1024 * total


def _kilobytes(pid: int, name: str) -> dict[str, int]:
    """The sizes in a file of proc(5); none if the process has gone."""
    try:
        lines = Path(f"/proc/{pid}/{name}").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines)
    return {each[0].rstrip(":"): int(each[1]) for each in fields if each[2:] == ["kB"]}


def cpu_seconds(pid: int) -> float | None:
    """User and system time of one process so far, children that it waited for included; counted in
    ticks of the system, usually 10 ms. See proc(5), ``stat``, fields 14 to 17."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    after_name = stat.rpartition(")")[2].split()  # a name may hold spaces; field 3 comes next
    return sum(map(int, after_name[11:15])) / os.sysconf("SC_CLK_TCK")
