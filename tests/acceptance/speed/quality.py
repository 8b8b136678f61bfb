"""The fast path against our own f32 on book text, beside llama.cpp against the same."""
import struct
import subprocess
import sys

import numpy
import step

sys.path.insert(0, str(step.ROOT / "bench" / "peers"))
import llama_cpp_peer  # noqa: E402

TOKENS, PIECE = 2000, 500


def ours(ids, compute, together=0):
    """Logits of every token, so many in a pass; 0: all."""
    out = subprocess.run([step.BUILD / "logits_tool", "smollm2", compute, str(together)], input=struct.pack(f"={len(ids)}i", *ids), capture_output=True, check=True)
    return numpy.frombuffer(out.stdout, numpy.float32).reshape(len(ids), -1)


def log_probabilities(logits):
    logits = logits.astype(numpy.float64) - logits.max(axis=1, keepdims=True)
    return logits - numpy.log(numpy.exp(logits).sum(axis=1, keepdims=True))


def divergence(exact, other):
    p, q = log_probabilities(exact), log_probabilities(other)
    return (numpy.exp(p) * (p - q)).sum(axis=1)


def body(s):
    engine = llama_cpp_peer.Llama(step.weights(), 1024, 2, logits_all=True)
    ids = engine.ids(step.novel_text(16_000))[:200 if s.quick else TOKENS]
    fast, theirs, fast_steps, their_steps = [], [], [], []
    for i in range(0, len(ids), PIECE):
        piece = ids[i:i + PIECE]
        exact = ours(piece, "f32")
        fast += list(divergence(exact, ours(piece, "automatic")))
        engine.forget()
        engine.read(piece)
        theirs += list(divergence(exact, engine.model.scores[:len(piece)]))
        fast_steps += list(divergence(exact, ours(piece, "automatic", 1)))
        engine.forget()
        for token in piece:
            engine.read([token])
        their_steps += list(divergence(exact, engine.model.scores[:len(piece)]))
    for way, mine, other in (("read at once", fast, theirs), ("one by one, as in decoding", fast_steps, their_steps)):
        mine, other = float(numpy.mean(mine)), float(numpy.mean(other))
        s.note(f"{len(ids)} tokens of novels {way}, KL from f32: llama.cpp", other)
        s.at_most(f"{way}: KL of the fast path from f32, beside llama.cpp's", mine, other)


if __name__ == "__main__":
    step.main(body)
