"""Parity with Hugging Face: logits, token ids on at least 3 MB, sentence embeddings."""
import step


def body(s):
    gguf = step.weights()
    step.parity(s, "language_model_parity.py", step.BUILD / "logits_tool", "--gguf", gguf, "--text", step.data("books", "Austen_Emma.txt.gz"))
    step.parity(s, "tokenizers_parity.py", step.BUILD / "tokenize_texts", step.DATA, "--gguf", gguf, "--bert", step.weights("minilm"), "--megabytes", 0.2 if s.quick else 2)
    step.parity(s, "sentence_encoder_parity.py", step.BUILD / "encoder_tool")


if __name__ == "__main__":
    step.main(body)
