"""A pytest plugin, `-p support.without_posix`: as on Windows, there is nothing that only POSIX has."""

import os
import signal
import sys

POSIX = ("fcntl", "grp", "pexpect", "pty", "pwd", "resource", "termios", "tty")
NAMES = {
    os: ("O_NOFOLLOW", "fork", "getuid", "killpg", "mkfifo", "sched_getaffinity"),
    signal: ("SIGALRM", "SIGHUP", "SIGKILL", "SIGUSR1", "SIGXFSZ"),
}

sys.modules.update(dict.fromkeys(POSIX))  # None: an import fails
for module, names in NAMES.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
