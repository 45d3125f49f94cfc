"""Run a program that dies with the process which started it: `python tether.py PARENT_PID PROGRAM [ARG…]`.

This file is run as a script, in a bare interpreter (`-I -S`), and replaces itself by the program. It stands
between because the alternative, `preexec_fn`, runs Python in a fork of a threaded process, which may deadlock.
Only Linux can tie a child to its parent; elsewhere the program runs untied.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
        if os.getppid() != parent:  # it died before the tie was made
            sys.exit(1)
    os.execv(program[0], program)  # noqa: S606


if __name__ == "__main__":
    main()
