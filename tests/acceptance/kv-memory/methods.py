"""The pipelines that are set side by side, at a share of the bytes that each may keep."""

# Scores, each followed by what cuts; the question is not known when they cut.
SCORES = ["random(seed=1)", "k_norm", "keydiff", "expected_attention", "qfilter", "tova", "h2o", "scissorhands", "snapkv",
          "chunk(of=snapkv)", "lag_kv(lag=32)", "kvzip"]


def keep(ratio):
    return f"keep(ratio={ratio}, sinks=4, recent=32, when=end)"


def at(ratio, tokens):
    """name -> spec of all methods that keep `ratio` of a context of so many tokens."""
    out = {"window": f"window(sinks=4, size={max(1, round(ratio * tokens) - 4)})"}
    for score in SCORES:
        out[score.split("(seed")[0]] = f"{score} | {keep(ratio)}"
    out["snapkv, pyramid"] = f"snapkv | pyramid | {keep(ratio)}"
    out["snapkv, adakv"] = f"snapkv | adakv | {keep(ratio)}"
    out["kvzip, adakv"] = f"kvzip | adakv(floor=0) | {keep(ratio)}"
    out["kvzip, adakv(scope=model)"] = f"kvzip | adakv(floor=0, scope=model) | {keep(ratio)}"
    out["h2o, cam"] = f"h2o | {keep(ratio)} | cam"
    if ratio <= 0.5:
        # 4 bits take 0.32 of the bytes of f16: what is left is bought with fewer entries.
        more = min(1.0, ratio / 0.32)
        if more == 1:
            out["4 bits"] = "quantize(bits=4)"
        else:
            for name, score in (("snapkv", "snapkv | adakv"), ("kvzip", "kvzip | adakv(floor=0)")):
                out[f"{name}, 4 bits"] = f"{score} | {keep(round(more, 4))} | quantize(bits=4)"
    return out
