"""What the peers' programs share: one line in, one line out; a number, or `error` and why."""
import ctypes
import signal
import sys
import time

PR_SET_PDEATHSIG = 1  # prctl(2)


def serve(make):
    """`make(arguments)` gives a function that answers a command, told as words, with a number."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # whoever asks may be killed while we are at work
    try:
        answer = make(sys.argv[1:])
    except ImportError as reason:
        print(f"{reason}: install it with .venv/bin/pip (requirements-acceptance.txt)", flush=True)
        sys.exit(1)
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            print(repr(float(answer(*line.split()))), flush=True)
        except Exception as reason:  # whatever it is, who asked has to hear of it
            print("error", " ".join(str(reason).split()) or type(reason).__name__, flush=True)


def seconds(work):
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
