"""Prints warpers.json: what transformers' logits processors make of fixed logits (None: forbidden).

Needs torch and transformers; run as: python warpers_reference.py > warpers.json
"""
import json

import torch
import transformers
from transformers.generation import logits_process as lp

PROCESSORS = {
    "temperature": lambda a: lp.TemperatureLogitsWarper(a["value"]),
    "top_k": lambda a: lp.TopKLogitsWarper(a["k"]),
    "top_p": lambda a: lp.TopPLogitsWarper(a["p"]),
    "min_p": lambda a: lp.MinPLogitsWarper(a["p"]),
    "repetition_penalty": lambda a: lp.RepetitionPenaltyLogitsProcessor(a["penalty"]),
}

CHAINS = [
    [("temperature", {"value": 0.7})],
    [("temperature", {"value": 2.5})],
    [("top_k", {"k": 1})],
    [("top_k", {"k": 7})],
    [("top_p", {"p": 0.1})],
    [("top_p", {"p": 0.5})],
    [("top_p", {"p": 0.9})],
    [("top_p", {"p": 0.99})],
    [("min_p", {"p": 0.02})],
    [("min_p", {"p": 0.3})],
    [("min_p", {"p": 1.0})],
    [("repetition_penalty", {"penalty": 1.3})],
    [("repetition_penalty", {"penalty": 0.8})],
    # transformers' own order, then llama.cpp's
    [("repetition_penalty", {"penalty": 1.2}), ("temperature", {"value": 1.7}), ("top_k", {"k": 9}), ("top_p", {"p": 0.8}), ("min_p", {"p": 0.1})],
    [("repetition_penalty", {"penalty": 1.2}), ("top_k", {"k": 9}), ("top_p", {"p": 0.8}), ("min_p", {"p": 0.1}), ("temperature", {"value": 1.7})],
]


def main():
    torch.manual_seed(4)
    cases = []
    for chain in CHAINS:
        for scale in (1.0, 3.0):
            logits = torch.randn(24) * scale
            history = torch.randint(0, 24, (10,))
            out = logits[None]
            for name, arguments in chain:
                out = PROCESSORS[name](arguments)(history[None], out.clone())
            spec = []
            for name, arguments in chain:
                arguments = dict(arguments, window=0) if name == "repetition_penalty" else arguments
                spec.append(name + "(" + ", ".join(f"{k}={v}" for k, v in arguments.items()) + ")")
            cases.append({
                "chain": " | ".join(spec),
                "logits": logits.tolist(),
                "history": history.tolist(),
                "expected": [None if x == float("-inf") else x for x in out[0].tolist()],
            })
    lines = ",\n".join(json.dumps(case) for case in cases)
    print(f'{{"transformers": "{transformers.__version__}", "cases": [\n{lines}\n]}}')


if __name__ == "__main__":
    main()
