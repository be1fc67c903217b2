"""Runs a command and writes what it took to a file, as JSON; SIGTERM ends the command.

A process of its own, run with `-I -S`: Linux counts the memory that a parent had at the fork as the child's, and this
one is small.
"""

import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

result, *command = sys.argv[1:]
began = time.time()
with subprocess.Popen(command) as child:
    signal.signal(signal.SIGTERM, lambda *_: child.kill())
    code = child.wait()
used = resource.getrusage(resource.RUSAGE_CHILDREN)
took = {
    "code": code,
    "began": began,
    "seconds": time.time() - began,
    "cpu": used.ru_utime + used.ru_stime,
    "peak": used.ru_maxrss * 1024,
}
Path(result).write_text(json.dumps(took))
