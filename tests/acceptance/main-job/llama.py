"""llama.cpp, for comparison: the same weights, its own tokenizer, its defaults, two threads."""
import sys

import step

sys.path.insert(0, str(step.ROOT / "bench" / "peers"))
import llama_cpp_peer  # noqa: E402

THREADS = 2


class Llama(llama_cpp_peer.Llama):
    def __init__(self, context=4096):
        try:
            super().__init__(step.weights(), context, THREADS)
        except ImportError as reason:
            raise step.CannotRun(f"{reason}: make acceptance installs it (requirements-acceptance.txt)")
