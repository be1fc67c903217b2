"""Runs one server as its child and kills it when whoever asked for it is gone, however that died.

`python guard.py COMMAND…`: the first line on standard output is the server's process id; each byte on standard input is
the number of a signal for the server; the end of standard input is SIGKILL. The kernel closes that pipe when its writer
dies of anything, -9 included, and unlike PR_SET_PDEATHSIG it does not mind which thread the server was started from.
The guard ends as the server ends, after reaping it: once the guard is gone, the server's ports are free.
"""

import os
import signal
import subprocess
import sys
import threading


def main(command: list[str]) -> int:
    """Run `command` to its end and return its exit code, 128 + N when signal N ended it."""
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno())
    # The guard must never end before the server, which nobody would be left to kill.
    signal.signal(signal.SIGTERM, lambda _number, _frame: server.kill())
    sys.stdout.write(f"{server.pid}\n")
    sys.stdout.flush()
    threading.Thread(target=_obey, args=(server,), daemon=True).start()
    code = server.wait()
    return code if code >= 0 else 128 - code


def _obey(server: subprocess.Popen[bytes]) -> None:
    while order := os.read(sys.stdin.fileno(), 1):
        server.send_signal(order[0])
    server.kill()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
