"""What SmolLM2 holds in memory beside its mapped weights and its keys and values, whatever the prompt's length, and that a
decoding step allocates nothing for a layer."""
import json
import subprocess

import resident
import step

MOST = 250  # MiB
KV_BYTES = 30 * 3 * 64 * 2 * 2  # a token's keys and values: layers, heads, width, both, bytes of a number
TEXT_BYTES = (2400, 20_000)  # of the prompts


def count_allocations(s):
    """The program that counts those of decoding steps, over a model of random weights."""
    program, found = step.BUILD / "test_allocations", s.folder / "allocations.json"
    if not program.exists():
        raise step.CannotRun(f"no {program}: scripts/build")
    subprocess.run([program, f"--gtest_output=json:{found}"], stdout=subprocess.DEVNULL)
    tests = [test for suite in json.loads(found.read_text())["testsuites"] for test in suite["testsuite"]]
    for test in tests:
        if "allocations_of_a_token" in test:
            s.note(f"allocations of a decoding step, {test['plan'] or 'without a plan'}", int(test["allocations_of_a_token"]))
    met = sum(test["result"] == "COMPLETED" and not test.get("failures") for test in tests)
    s.check("decoding steps allocate no more than their bounds", met == len(tests), f"{met} of {len(tests)} tests", "all of them, none skipped")


def body(s):
    count_allocations(s)
    s.note("a program that only links libtorch, MiB", resident.peak(step.BUILD / "empty_tool") / 2**20)
    for size in TEXT_BYTES:
        prompt = " ".join(step.novel_text(size).split())
        asked = len(step.mneme_json("tokenize", prompt)["ids"])
        most = resident.peak(step.MNEME, "generate", prompt, "--max-tokens", 100, "--temp", 0)
        s.note(f"mneme generate behind {asked} tokens, mapped weights aside, MiB", most / 2**20)
        s.at_most(f"beyond mapped weights and keys and values of {asked + 100} tokens, MiB", (most - KV_BYTES * (asked + 100)) / 2**20, MOST)


if __name__ == "__main__":
    step.main(body)
