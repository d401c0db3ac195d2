"""Become a command that ends with its parent: python tether.py PARENT_PID COMMAND [ARGUMENTS].

Runs before exec, in a process of its own, because code between fork and exec is unsafe in a
parent with threads. Stands alone: it is started by its path.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    # The kernel keeps this across exec. The signal comes when the thread that started us ends.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before it could be watched
        sys.exit(128 + signal.SIGTERM)
    # A shell that starts us in the background has SIGINT ignored, and exec would hand that down.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
