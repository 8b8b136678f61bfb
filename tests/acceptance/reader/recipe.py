"""The shipped adapter's recipe run once more: what comes of it answers as well."""
import answers
import step

STEPS = 340  # of the shipped adapter, as its card says; reader.toml counts passes, which suit data of any size


def body(s):
    count = 24 if s.quick else 500
    again = s.folder / "again.safetensors"
    step.mneme("train", "reader", "-o", again, "--data", step.DATA, "--steps", 6 if s.quick else STEPS, timeout=12 * 3600)
    shipped, _ = answers.bench("", count)
    figures = step.mneme_json("bench", "answers", "--data", step.DATA, "--split", "final", "--questions", count, "--variants", "gold", "--adapter", again,
                              timeout=3600)
    wanted, found = shipped["answers"]["gold"]["f1"], figures["answers"]["gold"]["f1"]
    s.note("F1 on the gold paragraph, shipped", answers.interval(wanted, 100, 1))
    s.check("F1 on the gold paragraph, trained once more", wanted["low"] <= found["value"] <= wanted["high"], answers.interval(found, 100, 1),
            "within the shipped one's interval")


if __name__ == "__main__":
    step.main(body)
