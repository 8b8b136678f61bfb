"""Keys and values of 4 bits beside 16: what they change, what they take, how fast decoding is behind 6,144 tokens."""
import step


def body(s):
    row = step.mneme_json("bench", "fidelity", "--kv", "quantize(bits=4)", "--tokens", "2048", "--samples", 4 if s.quick else 100, "--decode", "0", timeout=7200)["rows"][1]
    s.at_most("KL from the f16 cache behind 2,048 tokens, nats", row["scores"]["KL, nats"]["value"], 0.01)
    s.at_most("share of the bytes", row["share_of_full"], 0.32)
    s.quiet_machine()
    rates = {row["pipeline"]: row["decode_tokens_per_s"]
             for row in step.mneme_json("bench", "fidelity", "--kv", "quantize(bits=4)", "--tokens", "6144", "--samples", "3", "--decode", "64", timeout=7200)["rows"]}
    s.at_least("decoding behind 6,144 tokens, of f16's tokens/s", rates["quantize(bits=4)"] / rates["full"], 1)


if __name__ == "__main__":
    step.main(body)
