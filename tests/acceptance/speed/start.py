"""From the start of a process to its first token, beyond what a program takes that only links libtorch."""
import statistics
import subprocess
import time

import step

PROMPT = "The old lighthouse keeper climbed the stairs and"
GENERATE, ASK = 0.3, 0.6  # seconds


def first_byte(*command):
    """Seconds from the start to the first byte on standard output, or to the end if there is none."""
    started = time.perf_counter()
    with subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        process.stdout.read(1)
        took = time.perf_counter() - started
        process.stdout.read()
    if process.returncode:
        raise RuntimeError(f"{command[0]} {command[1]} exits {process.returncode}")
    return took


def body(s):
    text = s.folder / "novel.txt"
    text.write_text(step.novel_text(44_000))
    memory = s.folder / "novel.mneme"
    step.mneme("read", text, "-o", memory)
    question = "What did the vicar say to his wife about the letter?"
    sides = {"empty": [step.BUILD / "empty_tool"],
             "generate": [step.MNEME, "generate", PROMPT, "--max-tokens", 8, "--temp", 0],
             "ask": [step.MNEME, "ask", memory, question, "--always"]}
    for command in sides.values():
        first_byte(*command)
    s.quiet_machine()
    times = {name: [] for name in sides}
    for _ in range(2 if s.quick else 9):
        for name, command in sides.items():
            times[name].append(first_byte(*command))
    empty, generate, ask = (statistics.median(times[name]) for name in sides)
    s.note("a program that only links libtorch, s", empty)
    s.note("generate and ask to the first byte, s", [round(generate, 3), round(ask, 3)])
    s.at_most(f"generate with a prompt of {len(step.mneme_json('tokenize', PROMPT)['ids'])} tokens, beyond it, s", generate - empty, GENERATE)
    s.at_most("ask on a memory that is there, beyond it, s", ask - empty, ASK)


if __name__ == "__main__":
    step.main(body)
