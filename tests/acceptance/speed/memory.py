"""What SmolLM2 holds in memory beside its mapped weights and its keys and values, whatever the prompt's length."""
import resident
import step

MOST = 250  # MiB
KV_BYTES = 30 * 3 * 64 * 2 * 2  # a token's keys and values: layers, heads, width, both, bytes of a number
TEXT_BYTES = (2400, 20_000)  # of the prompts


def body(s):
    s.note("a program that only links libtorch, MiB", resident.peak(step.BUILD / "empty_tool") / 2**20)
    for size in TEXT_BYTES:
        prompt = " ".join(step.novel_text(size).split())
        asked = len(step.mneme_json("tokenize", prompt)["ids"])
        most = resident.peak(step.MNEME, "generate", prompt, "--max-tokens", 100, "--temp", 0)
        s.note(f"mneme generate behind {asked} tokens, mapped weights aside, MiB", most / 2**20)
        s.at_most(f"beyond mapped weights and keys and values of {asked + 100} tokens, MiB", (most - KV_BYTES * (asked + 100)) / 2**20, MOST)


if __name__ == "__main__":
    step.main(body)
