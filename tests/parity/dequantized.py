"""A GGUF's weights in transformers, dequantized to f32: what the programs here compare mneme with."""
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_DISABLE", "1")

from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
import torch


def load(gguf):
    """The model and its tokenizer."""
    folder, file = os.path.split(gguf)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    config = LlamaConfig(**{k: v for k, v in load_gguf_checkpoint(gguf)["config"].items() if k not in ("model_type", "architectures", "_model_name_or_path")})
    model = LlamaForCausalLM(config).eval()
    raw = load_gguf_checkpoint(gguf, return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict({k: torch.as_tensor(v).float() for k, v in raw.items()}, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model, tokenizer
