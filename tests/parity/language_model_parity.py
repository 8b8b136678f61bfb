"""Logits of small random llama models and of the default model against transformers, in f32; exit 1 on a miss.

Run by ctest with the Python that has transformers; without it the exit code is 77. Prints one line a check.
"""
import argparse
import os
import subprocess
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
try:
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

torch.set_grad_enabled(False)
failed = []


def ours(tool, model, ids, compute="f32", chunk=0):
    out = subprocess.run([tool, model, compute, str(chunk)], input=np.array(ids, np.int32).tobytes(), capture_output=True)
    if out.returncode:
        sys.exit(f"{tool} failed: {out.stderr.decode()[-500:]}")
    return torch.from_numpy(np.frombuffer(out.stdout, np.float32).reshape(len(ids), -1).copy())


def check(name, value, bar):
    good = value <= bar
    print(f"{'ok  ' if good else 'FAIL'} {name}: {value:.2e} (at most {bar:g})", flush=True)
    if not good:
        failed.append(name)


def save_tokenizer(folder, size):
    """A byte-level tokenizer of `size` tokens, so that the directory is complete."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate(alphabet)}
    for i in range(len(vocabulary), size):
        vocabulary[f"<unused{i}>"] = i
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(folder + "/tokenizer.json")


def random_models(tool):
    generator = torch.Generator().manual_seed(7)
    for name, kw in {"grouped": dict(num_key_value_heads=2), "whole": dict(num_key_value_heads=4), "tied": dict(num_key_value_heads=1, tie_word_embeddings=True),
                     "wide head": dict(num_key_value_heads=2, head_dim=32, rope_theta=500.0)}.items():
        torch.manual_seed(len(name))
        config = LlamaConfig(vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
                             max_position_embeddings=256, **kw)
        model = LlamaForCausalLM(config).eval().float()
        for p in model.parameters():  # norms start at one and would hide a missing weight
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
        ids = torch.randint(0, 300, (151,), generator=generator).tolist()
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            save_tokenizer(folder, 300)
            want = model(torch.tensor([ids])).logits[0]
            check(f"random llama, {name}: largest difference", (ours(tool, folder, ids) - want).abs().max().item(), 1e-4)
            check(f"random llama, {name}, in chunks of 7", (ours(tool, folder, ids, chunk=7) - want).abs().max().item(), 1e-4)


def default_model(tool, gguf, text):
    import dequantized
    model, tokenizer = dequantized.load(gguf)
    ids = tokenizer.encode(text, add_special_tokens=False)[:2000]
    want = torch.cat([model(torch.tensor([ids[i:i + 500]])).logits[0].float() for i in range(0, len(ids), 500)])
    pieces = [ids[i:i + 500] for i in range(0, len(ids), 500)]
    got = torch.cat([ours(tool, gguf, p) for p in pieces])
    check(f"default model in f32, {len(ids)} tokens: largest difference", (got - want).abs().max().item(), 1e-3)
    fast = torch.cat([ours(tool, gguf, p, "automatic") for p in pieces])
    steps = ours(tool, gguf, pieces[0], "automatic", 1)
    for name, logits, reference in (("fast path", fast, want), ("fast path, step by step", steps, want[:len(pieces[0])])):
        p, q = reference.log_softmax(-1), logits.log_softmax(-1)
        kl = (p.exp() * (p - q)).sum(-1).mean().item()
        same = p.argmax(-1) == q.argmax(-1)
        two = p.topk(2, -1).values
        clear = (two[:, 0] - two[:, 1]) > 0.1
        check(f"default model, {name}: KL", kl, 0.005)
        check(f"default model, {name}: first tokens that differ", 1 - same.float().mean().item(), 0.07)
        check(f"default model, {name}: the same where the margin is above 0.1", 1 - same[clear].float().mean().item(), 0.02)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("tool")
    parser.add_argument("--gguf")
    parser.add_argument("--text")
    a = parser.parse_args()
    random_models(a.tool)
    if a.gguf:
        import gzip
        import re
        if a.text and os.path.exists(a.text):
            book = re.sub(r"\s+", " ", gzip.open(a.text, "rt", encoding="utf-8").read())
            text = book[len(book) // 2:][:12000]
        else:  # without the data sets: the licence-free text that every Python carries
            import pydoc_data.topics
            text = "\n".join(pydoc_data.topics.topics.values())[:12000]
        default_model(a.tool, a.gguf, text)
    print(f"{len(failed)} failed")
    sys.exit(bool(failed))
