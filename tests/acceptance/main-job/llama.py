"""llama.cpp, for comparison: the same weights, its own tokenizer, its defaults, two threads."""
import ctypes
import os
import sys
import time

import step

THREADS = 2


def weights():
    """The default model's file, as mneme finds it."""
    models = step.mneme_json("models")["models"]
    return next(m["path"] for m in models if m["name"] == "smollm2")


class Llama:
    def __init__(self, context=4096):
        try:
            import llama_cpp
        except ImportError as reason:
            raise step.CannotRun(f"{reason}: make acceptance installs it (requirements-acceptance.txt)")
        self.api = llama_cpp
        self.model = llama_cpp.Llama(weights(), n_ctx=context, n_batch=512, n_threads=THREADS, n_threads_batch=THREADS, verbose=False)
        self.ctx = self.model.ctx

    def ids(self, text):
        return self.model.tokenize(text.encode(), add_bos=False, special=True)

    def forget(self, keep=0):
        """Drops all tokens but the first `keep`."""
        self.model.n_tokens = keep
        self.model._ctx.kv_cache_seq_rm(-1, keep, -1)

    def read(self, ids):
        """Runs ids behind what the context holds, logits of the last one; seconds taken."""
        started = time.perf_counter()
        for at in range(0, len(ids), 512):
            piece = ids[at:at + 512]
            batch = self.api.llama_batch_get_one((self.api.llama_token * len(piece))(*piece), len(piece))
            if self.api.llama_decode(self.ctx, batch) != 0:
                raise RuntimeError("llama_decode failed")
        self.api.llama_get_logits_ith(self.ctx, -1)  # waits for the result
        return time.perf_counter() - started
