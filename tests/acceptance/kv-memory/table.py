"""All methods at four shares of the bytes, without knowing the question: what they change and what can still be found."""
import os

import methods
import step

CONTEXT = 1024


def interval(score, digits):
    return f"{score['value']:.{digits}f} [{score['low']:.{digits}f}, {score['high']:.{digits}f}]"


def body(s):
    os.environ["MNEME_PROFILES"] = str(s.folder)  # the numbers of heads that qfilter needs, from a text of its own
    text = s.folder / "text.txt"
    text.write_text(step.novel_text(60_000))
    step.mneme("calibrate", "qfilter", "--text", text)
    s.quiet_machine()
    samples = 4 if s.quick else 100
    for removed in (50, 75, 90, 93.75):
        specs = methods.at(1 - removed / 100, CONTEXT)
        kv = "; ".join(specs.values())
        names = ["full", *specs]
        fidelity = step.mneme_json("bench", "fidelity", "--kv", kv, "--tokens", CONTEXT, "--samples", samples, timeout=7200)["rows"]
        needle = step.mneme_json("bench", "needle", "--kv", kv, "--lengths", CONTEXT, "--samples", -(-samples // 5), "--depths", "10,30,50,70,90",
                                 "--together", "true", "--generate", "false", timeout=7200)["rows"]
        for name, row, found in zip(names, fidelity, needle):
            s.note(f"{removed} % removed, {name}", f"KL {interval(row['scores']['KL, nats'], 4)}, needle ranked first "
                   f"{interval(found['scores']['ranking'], 2)}, {row['bytes'] / 2**20:.2f} MiB, of full {row['share_of_full']:.3f}, "
                   f"decode {row['decode_tokens_per_s']:.0f} tokens/s, looking {row['observe_s']:.3f} s")
        measured = [row for row in fidelity + needle if not row["refusal"]]
        s.check(f"{removed} % removed: {len(names)} pipelines, {samples} samples each", len(measured) == 2 * len(names), len(measured))


if __name__ == "__main__":
    step.main(body)
