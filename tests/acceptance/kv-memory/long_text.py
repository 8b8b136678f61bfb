"""A needle in 128k tokens, read with a pipeline that retrieves; and 200k tokens in constant memory."""
import step

PIPELINE = "infllm(sinks=16, local=512, block=32, topk=16, chunk=128, refresh=8, disk=true)"


def body(s):
    s.quiet_machine()
    depths = [10, 50, 90] if s.quick else list(range(5, 100, 10))
    near = step.mneme_json("bench", "needle", "--kv", PIPELINE, "--lengths", "1024", "--depths", ",".join(map(str, depths)), "--samples", "3", "--generate", "false", timeout=7200)["rows"]
    rates = {}
    for length in (8192, 16384 if s.quick else 131072):
        row = step.mneme_json("bench", "needle", "--kv", PIPELINE, "--lengths", length, "--depths", ",".join(map(str, depths)), "--samples", "1" if s.quick else "3", timeout=36000)["rows"][1]
        rates[length] = row["decode_tokens_per_s"]
        s.at_most(f"{length} tokens: resident bytes of states, MiB", row["most_bytes"] / 2**20, 300)
    found = sum(a["ranking"] >= b["ranking"] for a, b in zip(row["cells"], near[0]["cells"]))
    s.at_least(f"depths where it is found at {length} tokens as often as at 1,024 with all kept", found, len(depths))
    short, long = rates.values()
    s.at_most("time a token, of that at 8,192", short / long, 1.3)
    for kv in ("window(sinks=4, size=1020) | renumber", PIPELINE):
        row = step.mneme_json("bench", "perplexity", "--kv", kv, "--tokens", 16384 if s.quick else 200000, timeout=36000)["rows"][1]
        nll = row["segments_nll"]
        s.check(f"{kv}: perplexity stays flat", max(nll[1:]) <= 1.1 * nll[1], " ".join(f"{x:.2f}" for x in nll), "no eighth of the text 10 % above the second")


if __name__ == "__main__":
    step.main(body)
