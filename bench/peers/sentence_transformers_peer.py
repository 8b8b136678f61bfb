"""sentence-transformers beside mneme: the same encoder and texts.

usage: sentence_transformers_peer.py MODEL THREADS TEXTS      TEXTS: a JSON list of lists of texts

  embed LIST        seconds to embed all texts of a list (0, 1, ...) at once
  each LIST         the same one by one
"""
import json

import protocol


def make(arguments):
    import sentence_transformers
    import torch
    path, threads, texts = arguments
    torch.set_num_threads(int(threads))
    model = sentence_transformers.SentenceTransformer(path, device="cpu")
    lists = json.load(open(texts))

    def answer(what, which):
        texts = lists[int(which)]
        calls = [texts] if what == "embed" else [[text] for text in texts]
        return protocol.seconds(lambda: [model.encode(some, batch_size=32, show_progress_bar=False, normalize_embeddings=True) for some in calls])
    return answer


if __name__ == "__main__":
    protocol.serve(make)
