"""llama.cpp beside mneme: the same weights file and token ids.

usage: llama_cpp_peer.py WEIGHTS CONTEXT THREADS IDS      IDS: a file of token ids, with blanks between

Commands, each answered with seconds; FLASH is 0 or 1, flash attention off or on:
  prefill FLASH N           reads N tokens at once
  decode FLASH DEPTH N      reads N tokens one by one behind DEPTH others
"""
import protocol


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
    """One model with its context; its defaults but for what is given."""

    def __init__(self, weights, context, threads, flash=False, logits_all=False):
        import llama_cpp
        without_amx_buffers(llama_cpp)
        self.model = llama_cpp.Llama(weights, n_ctx=context, n_batch=512, n_threads=threads, n_threads_batch=threads, flash_attn=flash,
                                     logits_all=logits_all, verbose=False)

    def ids(self, text):
        return self.model.tokenize(text.encode(), add_bos=False, special=True)

    def forget(self, keep=0):
        """Drops all tokens but the first `keep`: eval goes on from there."""
        self.model.n_tokens = keep

    def read(self, ids):
        """Runs ids behind what the context holds; seconds taken."""
        return protocol.seconds(lambda: self.model.eval(ids))


def make(arguments):
    weights, context, threads, path = arguments
    ids = [int(i) for i in open(path).read().split()]
    engines, depths = {}, {}

    def engine(flash):
        if flash not in engines:
            engines[flash] = Llama(weights, int(context), int(threads), flash == "1")
        return engines[flash]

    def answer(what, flash, *numbers):
        numbers = [int(n) for n in numbers]
        llama = engine(flash)
        if what == "prefill":
            depths.pop(flash, None)
            llama.forget()
            return llama.read(ids[:numbers[0]])
        depth, n = numbers
        if depths.get(flash) != depth:
            llama.forget()
            llama.read(ids[:depth])
            depths[flash] = depth
        llama.forget(depth)
        return sum(llama.read([i]) for i in ids[depth:depth + n])
    engine("0")
    return answer


if __name__ == "__main__":
    protocol.serve(make)
