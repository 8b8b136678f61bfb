"""Tokens a second of everything, by `mneme bench speed`, other engines taking turns with ours."""
import step

# At least so many times as fast as the peer, or so large a share of the machine's limit: by level, what and depth.
BARS = {
    "avx2": {("decode", 128): (1.5, 0.70), ("decode", 2048): (2.0, 0.65), ("decode", 6144): (2.5, 0.65),
             ("prefill", 512): (2.5, 0.75), ("prefill", 2048): (2.5, 0.75), ("prefill", 6144): (2.5, 0.75)},
    "avx512": {("decode", 128): (1.5, 0.70), ("decode", 2048): (2.0, 0.65), ("decode", 6144): (2.5, 0.65),
               ("prefill", 512): (4.0, 0.60), ("prefill", 2048): (4.0, 0.60), ("prefill", 6144): (4.5, 0.60)},
}
LONG_CONTEXT = 0.6  # decode at depth 6144 with 4-bit keys and values, of that at depth 128
SESSIONS = {"avx2": 2.5, "avx512": 3.0}  # eight together, of one
EMBEDDING = {"avx2": (2, 3), "avx512": (4, 3)}  # passages, single sentences
OUTSIDE = 0.10  # of a decoding step
READING = {"avx2": 1.5, "avx512": 3.0}


def body(s):
    text = s.folder / "novel.txt"
    text.write_text(step.novel_text(120_000))
    rounds = 1 if s.quick else 5
    depths = (128, 512) if s.quick else (128, 512, 2048, 6144)

    def bench(measures, *more):
        s.quiet_machine()
        return step.mneme_json("bench", "speed", "--measures", measures, "--rounds", rounds, "--text", text, "--noisy", "true", "--quiet", *more,
                               timeout=4 * 3600)
    beside = bench("prefill,decode", "--depth", ",".join(map(str, depths)), "--against", "llama.cpp")
    level = beside["level"]  # one without bars is noted, not judged
    judged = level in BARS
    s.note("level, threads", f"{beside['level']}, {beside['threads']}")
    s.note("read bandwidth, GB/s", f"{beside['read_bytes_per_s'] / 1e9:.1f}, {beside['read_by']}")
    s.note("products in f32 of ATen, in bf16 the best, GFLOP/s", [round(beside["f32_flops_per_s"] / 1e9), round(beside["bf16_flops_per_s"] / 1e9)])
    s.note("fastest products, GFLOP/s", f"{beside['flops_per_s'] / 1e9:.0f}, {beside['flops_by']}")

    def bar(check, what, value, limit):
        check(what, value, limit) if judged else s.note(what, value)
    for row in beside["rows"]:
        what, depth = row["measure"], row["depth"]
        peers = {peer["name"]: round(peer["per_s"]) for peer in row["peers"]}
        of_bf16 = what == "prefill" and level == "avx512"  # there bf16 is what prompts are multiplied in
        share_found, limit = (row["share_of_floats"], "bf16 products") if of_bf16 else (row["share_of_limit"], f"the limit by {row['limited_by']}")
        told = f"{row['per_s']:.0f} tokens/s, {row['ratio']:.2f} x {row['best_peer']} ({peers}), {share_found:.0%} of {limit}"
        if of_bf16:
            told += f", {row['share_of_limit']:.0%} of the fastest"
        if judged and (what, depth) in BARS[level]:
            ratio, share = BARS[level][what, depth]
            s.check(f"{what}, {depth} tokens", row["ratio"] >= ratio or share_found >= share, told,
                    f"{ratio:g} x llama.cpp or {share:.0%} of {limit}")
        else:
            s.note(f"{what}, {depth} tokens", told)
        if what == "decode":
            bar(s.at_most, f"decode, {depth} tokens: part of a step outside kernels", row["outside_kernels"], OUTSIDE)

    four = bench("decode", "--depth", f"128,{depths[-1]}", "--kv", "quantize(bits=4)")["rows"]
    bar(s.at_least, f"decode at depth {depths[-1]} with keys and values at 4 bits, of depth 128", four[1]["per_s"] / four[0]["per_s"], LONG_CONTEXT)
    eight = bench("decode", "--depth", "512", "--batch", "1,8", "--ragged", "true")["rows"]
    s.note("decode at depth 512, tokens/s: one session, eight, eight of 256 to 768 tokens", [round(row["per_s"]) for row in eight])
    s.note("part of these steps outside kernels", [round(row["outside_kernels"], 3) for row in eight])
    bar(s.at_least, "eight sessions decoded together at depth 512, tokens/s of one", eight[1]["per_s"] / eight[0]["per_s"], SESSIONS.get(level))
    for row, least in zip(bench("embedding", "--against", "sentence-transformers")["rows"], EMBEDDING.get(level, (None, None))):
        s.note(f"{row['measure']}, tokens/s: mneme, sentence-transformers", [round(row["per_s"]), round(row["peers"][0]["per_s"])])
        bar(s.at_least, f"{row['measure']}, beside sentence-transformers", row["ratio"], least)
    reading = bench("reading", "--depth", "512" if s.quick else "2048", "--against", "llama.cpp")["rows"][0]
    s.note("reading eagerly, tokens/s", reading["per_s"])
    bar(s.at_least, "reading eagerly beside llama.cpp's prefill alone", reading["ratio"], READING.get(level))
    for row in bench("first-token,restore", "--depth", "512" if s.quick else "2048")["rows"]:
        s.note(f"{row['measure']}, {row['depth']} tokens: tokens/s", row["per_s"])


if __name__ == "__main__":
    step.main(body)
