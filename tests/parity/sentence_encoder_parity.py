"""The sentence encoder against sentence-transformers, and small random bert models against transformers.

usage: sentence_encoder_parity.py TOOL
TOOL is the built program encoder_tool. Texts come from MNEME_DATA (else ../shared/data beside the checkout), or from what
every Python carries. Prints one line a check and exits 1 on a miss, 77 where the references are not installed.
"""
import gzip
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
try:
    import numpy as np
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import BertConfig, BertForMaskedLM, BertModel
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

torch.set_grad_enabled(False)
torch.set_num_threads(2)
failed = []
N_TEXTS = 500


def tool(program, *arguments, data=b""):
    out = subprocess.run([program, *arguments], input=data, capture_output=True)
    if out.returncode:
        sys.exit(f"{program} {' '.join(arguments)} failed: {out.stderr.decode()[-500:]}")
    return out.stdout


def check(name, value, bar, at_least=False):
    good = value >= bar if at_least else value <= bar
    print(f"{'ok  ' if good else 'FAIL'} {name}: {value:.3g} (at {'least' if at_least else 'most'} {bar:g})", flush=True)
    if not good:
        failed.append(name)


def random_models(program):
    """Hidden states of ragged batches, for configurations that differ in every number that is read."""
    generator = torch.Generator().manual_seed(5)
    small = dict(vocab_size=120, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=80, max_position_embeddings=64)
    cases = {
        "plain": (BertModel, small),
        "one head, one type, tanh gelu": (BertModel, {**small, "num_attention_heads": 1, "type_vocab_size": 1, "hidden_act": "gelu_new"}),
        "deep and wide, relu": (BertModel, {**small, "num_hidden_layers": 5, "intermediate_size": 200, "hidden_act": "relu", "layer_norm_eps": 1e-5}),
        "names under bert.": (BertForMaskedLM, {**small, "hidden_size": 40, "num_attention_heads": 5}),
    }
    for name, (kind, kw) in cases.items():
        model = kind(BertConfig(**kw)).eval().float()
        for p in model.parameters():  # norms start at one and biases at zero: either would hide a missing weight
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
        encoder = model.bert if hasattr(model, "bert") else model
        lengths = [37, 1, 12, 30]
        ids = torch.randint(0, 120, (4, 37), generator=generator)
        mask = (torch.arange(37)[None] < torch.tensor(lengths)[:, None]).long()
        want = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        data = np.array([4, 37, *lengths, *ids.flatten().tolist()], np.int32).tobytes()
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            got = torch.from_numpy(np.frombuffer(tool(program, "hidden", folder, "f32", data=data), np.float32).copy()).view_as(want)
        check(f"random bert, {name}: largest difference", ((got - want).abs() * mask[..., None]).max().item(), 1e-4)


def texts():
    """Questions, paragraphs, sentences of books, and lines made to be awkward; every eighth is long."""
    data = pathlib.Path(os.environ.get("MNEME_DATA") or pathlib.Path(__file__).resolve().parents[2].parent / "shared" / "data")
    choose = random.Random(3)
    out = ["", " ", "a", "Zürich, naïve café: déjà vu?", "日本語の文章です。", "Привет, мир!", "😀 emoji 👩‍👩‍👧 family", "x" * 400, "don't  stop\t\tnow\n\n", "3.14159 + 2/3 = ?",
           "word " * 254, "word " * 255, "word " * 300]
    squad, book = data / "squad" / "dev-v1.1.json.gz", data / "books" / "Eliot_Middlemarch.txt.gz"
    if squad.exists() and book.exists():
        articles = json.load(gzip.open(squad))["data"]
        paragraphs = [p for a in articles for p in a["paragraphs"]]
        for p in choose.sample(paragraphs, 160):
            out += [p["context"], choose.choice(p["qas"])["question"]]
        prose = re.sub(r"\s+", " ", gzip.open(book, "rt", encoding="utf-8").read())
    else:
        import pydoc_data.topics
        prose = "\n".join(pydoc_data.topics.topics.values())
    sentences = [s for s in re.split(r"(?<=[.!?]) ", prose) if s]
    while len(out) < N_TEXTS:
        at = choose.randrange(len(sentences) - 40)
        out.append(" ".join(sentences[at:at + (30 if len(out) % 8 == 0 else choose.randint(1, 4))]))
    return out[:N_TEXTS]


def default_model(program):
    path = tool(program, "path", "minilm").decode()
    reference = SentenceTransformer(path, device="cpu")
    some = texts()
    want = torch.from_numpy(reference.encode(some, batch_size=32, normalize_embeddings=True))
    # Without special tokens, so that the tokenizer's own limit does not cut.
    lengths = [len(ids) + 2 for ids in reference.tokenizer(some, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]]
    data = b"".join(len(t := text.encode()).to_bytes(4, "little") + t for text in some)
    for compute, bar in (("f32", 0.9999), ("automatic", 0.999)):
        record = np.dtype([("tokens", np.int32), ("truncated", np.int32), ("vector", np.float32, (want.shape[1],))])
        got = np.frombuffer(tool(program, "embed", "minilm", compute, data=data), record)
        cosine = (torch.from_numpy(got["vector"].copy()) * want).sum(-1)
        check(f"minilm, {compute}, {len(some)} texts: smallest cosine", cosine.min().item(), bar, at_least=True)
        check(f"minilm, {compute}: largest distance of a length from 1", float(np.abs(np.linalg.norm(got["vector"], axis=1) - 1).max()), 1e-5)
        check(f"minilm, {compute}: token counts that differ", int((got["tokens"] != np.array(lengths)).sum()), 0)
        over = np.array(lengths) > reference.max_seq_length
        check(f"minilm, {compute}: truncations reported wrongly ({int(over.sum())} texts are cut)", int((got["truncated"].astype(bool) != over).sum()), 0)
        assert 5 < over.sum() < len(some) / 2, "texts of both kinds"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    random_models(sys.argv[1])
    default_model(sys.argv[1])
    print(f"{len(failed)} failed")
    sys.exit(bool(failed))
