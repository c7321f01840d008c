"""What a process and its descendants cost, as Linux counts it in /proc; None without it."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cpu_seconds", "descendants", "peak_memory"]


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
