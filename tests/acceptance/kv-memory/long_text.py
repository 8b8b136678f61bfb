"""Needles in 128k tokens, read with a pipeline that retrieves; and 200k tokens in constant memory."""
import step

PIPELINE = "infllm(sinks=16, local=512, block=16, topk=32, representatives=2, chunk=16, refresh=16, disk=true)"


def needles(s, length):
    depths = "10,50,90" if s.quick else ",".join(str(depth) for depth in range(5, 100, 10))
    return step.mneme_json("bench", "needle", "--kv", PIPELINE, "--lengths", length, "--depths", depths, "--together", "true",
                           "--samples", "1" if s.quick else "3", timeout=36000)["rows"]


def body(s):
    s.quiet_machine()
    near = needles(s, 1024)[0]  # the full cache
    rates = {}
    for length in (8192, 16384 if s.quick else 131072):
        row = needles(s, length)[1]
        rates[length] = row["decode_tokens_per_s"]
        s.at_most(f"{length} tokens: resident bytes of states, MiB", row["most_bytes"] / 2**20, 300)
        s.note(f"{length} tokens: ranked first, by depth", " ".join(f"{cell['ranking']:.2f}" for cell in row["cells"]))
        s.note(f"{length} tokens: evidence that could be read", f"{row['scores']['evidence']['value']:.2f}")
    found = sum(a["ranking"] >= b["ranking"] for a, b in zip(row["cells"], near["cells"]))
    s.at_least(f"depths where it is found at {length} tokens as often as at 1,024 with all kept", found, len(near["cells"]))
    short, long = rates.values()
    s.at_most("time a token, of that at 8,192", short / long, 1.3)
    for kv in ("window(sinks=4, size=1020) | renumber", PIPELINE):
        row = step.mneme_json("bench", "perplexity", "--kv", kv, "--tokens", 16384 if s.quick else 200000, timeout=36000)["rows"][1]
        nll = row["segments_nll"]
        s.check(f"{kv}: perplexity stays flat", max(nll[1:]) <= 1.1 * nll[1], " ".join(f"{x:.2f}" for x in nll), "no eighth of the text 10 % above the second")


if __name__ == "__main__":
    step.main(body)
