"""A function in a forked process, and what became of it."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable


def in_child(work: Callable[[], bool], seconds: int = 30) -> bool:
    """What ``work`` returns in a fork of this process; False if it fails or takes longer."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)  # ends a child that hangs
        done = False
        try:
            done = work()
        except BaseException:  # noqa: BLE001  nothing of the parent may run in the child
            traceback.print_exc()
        finally:
            os._exit(0 if done else 1)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 0
