"""Training steps against PyTorch and transformers: the same LoRA, data and order on the default model, in f32.

The two take their steps in turns, on two threads each, so that both meet the same machine. Compared are every loss, the
norm of the gradients, and the adapter at the end; both speeds are printed. Exit 1 on a miss, 77 without transformers.
"""
import argparse
import json
import math
import os
import random
import re
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
try:
    import torch
    import torch.nn.functional as F
    from safetensors.torch import load_file
    import dequantized
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

failed = []


def check(name, value, bar):
    good = value <= bar
    print(f"{'ok  ' if good else 'FAIL'} {name}: {value:.2e} (at most {bar:g})", flush=True)
    if not good:
        failed.append(name)


def load(gguf):
    model, tokenizer = dequantized.load(gguf)
    for p in model.parameters():
        p.requires_grad_(False)
    return model, tokenizer


class Lora(torch.nn.Module):
    def __init__(self, linear, a, b, scale):
        super().__init__()
        self.linear, self.scale = linear, scale
        self.a, self.b = torch.nn.Parameter(a), torch.nn.Parameter(b)

    def forward(self, x):
        return self.linear(x) + self.scale * F.linear(F.linear(x, self.a), self.b)


def turned(b, heads, back=False):
    """GGUF files keep the rows of a head's queries and keys as pairs that turn together, transformers as two halves."""
    rows = b.view(heads, 2, -1, b.shape[1]) if back else b.view(heads, -1, 2, b.shape[1])
    return rows.transpose(1, 2).reshape(b.shape)


PARTS = {"attn.q": ("self_attn", "q_proj"), "attn.k": ("self_attn", "k_proj"), "attn.v": ("self_attn", "v_proj"), "attn.out": ("self_attn", "o_proj"),
         "mlp.gate": ("mlp", "gate_proj"), "mlp.up": ("mlp", "up_proj"), "mlp.down": ("mlp", "down_proj")}


def heads_of(config, part):
    return {"attn.q": config.num_attention_heads, "attn.k": config.num_key_value_heads}.get(part, 0)


def attach(model, tensors, scale):
    """Puts the LoRA of an adapter file in place; gives its modules by our names."""
    out = {}
    for i, layer in enumerate(model.model.layers):
        for part, (box, name) in PARTS.items():
            ours = f"layers.{i}.{part}.weight"
            a, b = tensors[ours + ".lora_a"].float(), tensors[ours + ".lora_b"].float()
            if heads := heads_of(model.config, part):
                b = turned(b, heads)
            module = Lora(getattr(getattr(layer, box), name), a.clone(), b.clone(), scale)
            setattr(getattr(layer, box), name, module)
            out[ours] = module
    assert len(out) * 2 == len(tensors)
    return out


def examples_of(tokenizer, count, length, rng):
    """Pieces of the text that every Python carries, the last third of each to be learned."""
    import pydoc_data.topics
    text = re.sub(r"\s+", " ", "\n".join(pydoc_data.topics.topics.values()))[:400000]
    ids = tokenizer.encode(text, add_special_tokens=False)
    out = []
    for _ in range(count):
        n = rng.randint(length // 2, length)
        at = rng.randrange(len(ids) - n)
        learned = max(1, n // 3)
        out.append({"ids": ids[at:at + n], "weights": [0.0] * (n - learned - 1) + [1.0] * learned + [0.0]})
    return out


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tool")
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=400, help="tokens of the longest example")
    parser.add_argument("--checkpoint-layers", type=int, default=0)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--slowest", type=float, default=0.0, help="fail below this share of PyTorch's tokens a second")
    a = parser.parse_args()
    if not os.path.exists(a.gguf):
        print("skipped: the default model is not installed")
        sys.exit(77)
    torch.set_num_threads(2)
    torch.manual_seed(1)
    # The first cosines that a process takes on two threads can be wrong by 1e-4, while MKL sets itself up; the model's rotary positions must not be those.
    for angles in (torch.arange(100_000.0), torch.arange(100_000.0).double()):
        angles.cos(), angles.sin()
    model, tokenizer = load(a.gguf)
    examples = examples_of(tokenizer, a.steps * a.batch, a.length, random.Random(1))
    with tempfile.TemporaryDirectory() as folder:
        with open(folder + "/examples.json", "w") as out:
            json.dump(examples, out)
        with open(folder + "/train.toml", "w") as out:
            out.write(f'''[task]
spec = "repeat"
[adapter]
rank = {a.rank}
alpha = {2.0 * a.rank}
type = "f32"
[optimizer]
spec = "adamw(lr={a.lr})"
schedule = "cosine(warmup=10)"
clip = 1.0
[train]
steps = {a.steps}
batch = {a.batch}
checkpoint_layers = {a.checkpoint_layers}
compute = "f32"
''')
        tool = subprocess.Popen([a.tool, a.gguf, folder + "/examples.json", folder + "/train.toml", folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert tool.stdout.readline() == "ready\n", "the tool failed"
        modules = attach(model, load_file(folder + "/initial.safetensors"), 2.0)
        order = json.load(open(folder + "/order.json"))
        trained = [p for m in modules.values() for p in (m.a, m.b)]
        print(f"{sum(p.numel() for p in trained)} numbers are trained", flush=True)
        optimizer = torch.optim.AdamW(trained, lr=a.lr, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0)
        ours, theirs, differences, norms = [0, 0.0, 0.0], [0, 0.0, 0.0], [], []
        for step in range(a.steps):
            tool.stdin.write("\n")
            tool.stdin.flush()
            report = json.loads(tool.stdout.readline())
            start, processor = time.perf_counter(), time.process_time()
            batch = [examples[i] for i in order[step]]
            longest = max(len(e["ids"]) for e in batch)
            ids = torch.zeros(len(batch), longest, dtype=torch.long)
            learned = torch.zeros(len(batch), longest, dtype=torch.bool)
            for row, e in enumerate(batch):
                n = len(e["ids"])
                ids[row, :n] = torch.tensor(e["ids"])
                learned[row, :n] = torch.tensor(e["weights"]) > 0
            rate = a.lr * min(1.0, (step + 1) / 10) * (0.5 + 0.5 * math.cos(math.pi * step / a.steps))
            for group in optimizer.param_groups:
                group["lr"] = rate
            hidden = model.model(ids, use_cache=False).last_hidden_state
            loss = F.cross_entropy(model.lm_head(hidden[learned]), ids.roll(-1, 1)[learned])
            optimizer.zero_grad()
            loss.backward()
            norm = float(torch.nn.utils.clip_grad_norm_(trained, 1.0))
            optimizer.step()
            seconds, processor = time.perf_counter() - start, time.process_time() - processor
            tokens = sum(len(e["ids"]) for e in batch)
            assert tokens == report["tokens"], (tokens, report)
            differences.append(abs(loss.item() - report["loss"]))
            norms.append(abs(norm - report["norm"]) / norm)
            print(f"step {step + 1}: loss {loss.item():.6f}, ours {report['loss']:.6f}; norm {norm:.5f}, ours {report['norm']:.5f}; "
                  f"{tokens / seconds:.0f} tokens/s, ours {tokens / report['seconds']:.0f}", flush=True)
            if step > 0:  # the first one warms up
                for total, *s in ((ours, report["seconds"], report["processor_seconds"]), (theirs, seconds, processor)):
                    for i, value in enumerate((tokens, *s)):
                        total[i] += value
        tool.stdin.close()
        assert tool.wait() == 0
        got = load_file(folder + "/adapter.safetensors")
    want = {}
    for name, module in modules.items():
        want[name + ".lora_a"] = module.a.detach()
        heads = heads_of(model.config, name.split(".", 2)[2].rsplit(".", 1)[0])
        want[name + ".lora_b"] = turned(module.b.detach(), heads, back=True) if heads else module.b.detach()
    check("largest difference of a loss", max(differences), 1e-3)
    check("largest relative difference of the gradients' norm", max(norms), 1e-3)
    for half in ("lora_a", "lora_b"):
        names = [n for n in want if n.endswith(half)]
        off = math.sqrt(sum(float((got[n] - want[n]).square().sum()) for n in names))
        size = math.sqrt(sum(float(want[n].square().sum()) for n in names))
        check(f"adapter, {half}: relative difference", off / size, 1e-3)
    if ours[1]:
        speeds = ours[0] / ours[1], theirs[0] / theirs[1]
        print(f"tokens/s: ours {speeds[0]:.1f}, PyTorch and transformers {speeds[1]:.1f}, ratio {speeds[0] / speeds[1]:.3f}")
        print(f"processor seconds for 1000 tokens: ours {1000 * ours[2] / ours[0]:.2f}, PyTorch and transformers {1000 * theirs[2] / theirs[0]:.2f}")
        if a.slowest:
            check("PyTorch's speed over ours", speeds[1] / speeds[0], 1 / a.slowest)
    print(f"{len(failed)} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
