"""llama.cpp, for comparison: the same weights, its own tokenizer, its defaults, two threads."""
import ctypes
import os
import sys
import time

import step

THREADS = 2


def without_amx_buffers(api):
    """llama-cpp-python 0.3.36 ends with a segmentation fault in llama_decode where the processor has AMX and the weights
    are Q4_1; its other code paths work there too."""
    if "amx_tile" not in open("/proc/cpuinfo").read():
        return
    defaults = api.llama_model_default_params

    def changed():
        params = defaults()
        params.use_extra_bufts = False
        return params
    api.llama_model_default_params = changed
    api.llama_cpp.llama_model_default_params = changed


class Llama:
    def __init__(self, context=4096):
        try:
            import llama_cpp
        except ImportError as reason:
            raise step.CannotRun(f"{reason}: make acceptance installs it (requirements-acceptance.txt)")
        self.api = llama_cpp
        without_amx_buffers(llama_cpp)
        self.model = llama_cpp.Llama(step.weights(), n_ctx=context, n_batch=512, n_threads=THREADS, n_threads_batch=THREADS, verbose=False)
        self.ctx = self.model.ctx

    def ids(self, text):
        return self.model.tokenize(text.encode(), add_bos=False, special=True)

    def forget(self, keep=0):
        """Drops all tokens but the first `keep`: eval goes on from there."""
        self.model.n_tokens = keep

    def read(self, ids):
        """Runs ids behind what the context holds, logits of the last one; seconds taken."""
        started = time.perf_counter()
        self.model.eval(ids)
        return time.perf_counter() - started
