"""Processes of one machine that stand for hosts: which cores each has, and what it costs as Linux
counts it in /proc (None without it)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = [
    "bind_to_half",
    "bound_to_half",
    "cpu_seconds",
    "descendants",
    "own_cores",
    "peak_memory",
]


def own_cores() -> list[int]:
    """That this thread may run on; [] where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def bind_to_half(pid: int, half: int | None, shared: Sequence[int]) -> None:
    """Let a process that just started (0: this thread), and what it will start, run on one half of
    the ``shared`` cores alone, 0 or 1; None: on all of them.

    Two parties on one machine would otherwise meet on one core: whoever gets a message from a
    process that then goes on computing is put beside it. And the threads of one, which hand a
    message on, would each wake a core that sleeps. Does nothing with one core, or where the system
    cannot do it.
    """
    if len(shared) > 1:
        middle = (len(shared) + 1) // 2
        own = {None: shared, 0: shared[:middle], 1: shared[middle:]}[half]
        with suppress(ProcessLookupError):  # it ended at once; whoever waits for it will say so
            os.sched_setaffinity(pid, own)


@contextmanager
def bound_to_half(half: int | None) -> Iterator[None]:
    """As ``bind_to_half`` for this thread and what it starts; after it, this thread as before."""
    before = own_cores()
    bind_to_half(0, half, before)
    try:
        yield
    finally:
        bind_to_half(0, None, before)


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
    """Peak resident bytes of a process and its descendants together, as they would be on a host of
    their own: a page that several of them share, a template's with its workers or a library's,
    counts once, and counts whole whoever else maps the same library."""
    total, files = 0, dict[str, int]()
    for each in (pid, *descendants(pid)):
        peak = _kilobytes(each, "status").get("VmHWM")
        if peak is None and each == pid:
            return None
        now = _kilobytes(each, "smaps_rollup")  # not everywhere
        own = now.get("Pss_Anon", 0) + now.get("Pss_Shmem", 0)
        total += (peak or 0) - now.get("Rss", 0) + own
        if now:
            for name, size in _file_pages(each).items():
                files[name] = max(size, files.get(name, 0))
    return 1024 * (total + sum(files.values()))


def _file_pages(pid: int) -> dict[str, int]:
    """Kilobytes resident of each part of a file that a process maps, pages of its own aside."""
    found: dict[str, int] = {}
    name = ""
    try:
        lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
    except OSError:
        return {}
    for line in lines:
        field = line.split(maxsplit=5)
        if not field[0].endswith(":"):  # address, rights, offset, device, inode, file
            name = f"{field[2]} {field[5]}" if len(field) > 5 and field[5][0] == "/" else ""
        elif name and field[0] in ("Rss:", "Anonymous:"):
            sign = 1 if field[0] == "Rss:" else -1
            found[name] = found.get(name, 0) + sign * int(field[1])
    return found


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
