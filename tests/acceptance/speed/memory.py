"""What SmolLM2 holds in memory beside its mapped weights and its keys and values."""
import resident
import step

MOST = 250  # MiB
KV_BYTES = 30 * 3 * 64 * 2 * 2  # a token's keys and values: layers, heads, width, both, bytes of a number


def body(s):
    prompt = " ".join(step.novel_text(2400).split())
    asked = len(step.mneme_json("tokenize", prompt)["ids"])
    empty = resident.peak(step.BUILD / "empty_tool")
    most = resident.peak(step.MNEME, "generate", prompt, "--max-tokens", 100, "--temp", 0)
    s.note("a program that only links libtorch, MiB", empty / 2**20)
    s.note("mneme generate, mapped weights aside, MiB", most / 2**20)
    s.at_most(f"beyond mapped weights and keys and values of {asked + 100} tokens, MiB", (most - KV_BYTES * (asked + 100)) / 2**20, MOST)


if __name__ == "__main__":
    step.main(body)
