"""The formats' own Python packages as judges of the C++ readers and writers.

  reference.py make FOLDER             writes small GGUF and safetensors files and expected.json
  reference.py gguf FILE               prints one JSON line a tensor: name, shape, SHA-256 of its f32 numbers
  reference.py safetensors FILE        the same for a safetensors file, SHA-256 of the stored bytes, then the metadata
"""

import hashlib
import json
import pathlib
import sys

import numpy as np


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def gguf_lines(path):
    import gguf

    for tensor in gguf.GGUFReader(path).tensors:
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        shape = [int(size) for size in reversed(tensor.shape)]
        yield {"name": tensor.name, "shape": shape, "sha256": digest(numbers)}


def safetensors_lines(path):
    import torch
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for name in file.keys():
            tensor = file.get_tensor(name)
            raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
            yield {"name": name, "shape": list(tensor.shape), "sha256": digest(raw)}
        yield {"metadata": file.metadata()}


def make(folder):
    import gguf
    import torch
    from safetensors.torch import save_file

    rng = np.random.default_rng(7)
    pairs = {
        "count": 7,
        "negative": -5,
        "ratio": 0.5,
        "flag": True,
        "text": "μνήμη",
        "tokens": ["a", "", "ab\n"],
        "ids": [3, -1, 2],
        "scores": [0.25, -1.5],
    }
    writer = gguf.GGUFWriter(folder / "small.gguf", "llama")
    writer.add_uint32("count", pairs["count"])
    writer.add_int32("negative", pairs["negative"])
    writer.add_float32("ratio", pairs["ratio"])
    writer.add_bool("flag", pairs["flag"])
    writer.add_string("text", pairs["text"])
    for key in ("tokens", "ids", "scores"):
        writer.add_array(key, pairs[key])
    kinds = gguf.GGMLQuantizationType
    for kind in (kinds.F32, kinds.F16, kinds.BF16, kinds.Q8_0, kinds.Q4_0, kinds.Q4_1):
        numbers = rng.standard_normal((5, 96)).astype(np.float32)
        writer.add_tensor(f"w.{kind.name}", gguf.quants.quantize(numbers, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    torch.manual_seed(7)
    tensors = {
        str(dtype).removeprefix("torch."): (torch.randn(3, 7) * 50).to(dtype)
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool)
    }
    tensors["scalar"] = torch.tensor(2.5)
    tensors["empty"] = torch.zeros(0, 4)
    save_file(tensors, folder / "small.safetensors", metadata={"format": "pt"})

    expected = {
        "pairs": pairs,
        "gguf": list(gguf_lines(folder / "small.gguf")),
        "safetensors": list(safetensors_lines(folder / "small.safetensors")),
    }
    (folder / "expected.json").write_text(json.dumps(expected))


if __name__ == "__main__":
    command, path = sys.argv[1], pathlib.Path(sys.argv[2])
    if command == "make":
        make(path)
    else:
        for line in {"gguf": gguf_lines, "safetensors": safetensors_lines}[command](path):
            print(json.dumps(line))
