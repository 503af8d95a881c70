"""A pytest plugin, `-p support.without_posix`: as on Windows, there are no modules that only POSIX has."""

import sys

POSIX = ("fcntl", "grp", "pexpect", "pty", "pwd", "resource", "termios", "tty")

sys.modules.update(dict.fromkeys(POSIX))  # None: an import fails
