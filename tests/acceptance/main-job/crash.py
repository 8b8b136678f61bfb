"""kill -9 at 100 random moments of reads, asks, forgets and chats: the memory opens, verifies and goes on."""
import collections
import json
import random
import shutil
import signal
import subprocess
import time

from secrets_of import marker, search, secret_text, secrets_of
import step

ROUNDS = {"read": 35, "ask": 20, "chat": 25, "forget": 20}
TRIES = 10  # of a round whose victim had ended before the kill came


class Victim:
    """A memory that is hurt again and again, and what must be true of it."""

    def __init__(self, s, generator):
        self.s, self.generator = s, generator
        self.memory = s.folder / "memory.mneme"
        self.folder = s.folder / "text"
        self.folder.mkdir()
        self.spans = {}  # of every text, by label
        self.number = 0
        self.messages = 0
        self.acknowledged = 0  # messages of the chat whose reply was seen
        self.problems = collections.Counter()
        self.first = None  # label of the source that stays
        for _ in range(2):
            path, label = self.text()
            self.first = self.first or label
            step.mneme("read", path, "-o", self.memory, "--eager")

    def text(self, words=()):
        """A new text, counted by itself, and the label it will have."""
        self.number += 1
        path = self.folder / f"text{self.number}.txt"
        path.write_text(secret_text(self.generator, words, 5000))
        source = step.mneme_json("read", path, "--dry-run")["sources"][0]
        self.spans[source["name"]] = source["spans"]
        return path, source["name"]

    def problem(self, what, detail=""):
        self.problems[what] += 1
        print(f"     problem: {what} {detail}", flush=True)

    def killed(self, arguments, longest, lines=()):
        """Runs mneme, feeds it lines, and kills it at a random moment; what it had said until then, and whether it had ended."""
        process = subprocess.Popen([str(step.MNEME), *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            process.stdin.write("".join(line + "\n" for line in lines).encode())
            process.stdin.close()
        except BrokenPipeError:
            pass
        time.sleep(self.generator.uniform(0, 1.1 * longest))
        process.send_signal(signal.SIGKILL)
        said = process.stdout.read().decode(errors="replace")
        return said, process.wait() != -signal.SIGKILL

    def examine(self):
        """What must hold after every crash."""
        out = step.mneme("verify", self.memory, check=False)
        if out.returncode:
            self.problem("verify", (out.stdout + out.stderr)[-300:])
        shown = step.mneme("show", self.memory, "--json", check=False)
        if shown.returncode:
            return self.problem("show", shown.stderr[-300:])
        sources = json.loads(shown.stdout)["sources"]
        names = [x["name"] for x in sources]
        if len(set(names)) != len(names):
            self.problem("a source is there twice", names)
        for x in sources:
            if x["spans"] != self.spans[x["name"]]:
                self.problem("a source has other spans than its text", x)
            if x["with_states"] > x["spans"]:
                self.problem("more states than spans", x)
        twice = step.query(self.memory, "SELECT count(*) - count(DISTINCT span_id) FROM reps WHERE kind = 'embedding'")[0][0]
        if twice:
            self.problem("a span has two embeddings", twice)
        turns = step.query(self.memory, "SELECT t.number, t.role, t.text FROM turns t JOIN sessions s ON s.id = t.session_id ORDER BY t.session_id, t.number")
        said = [text for _, role, text in turns if role == "user"]
        if len(set(said)) != len(said):
            self.problem("a turn is there twice")
        if len(said) < self.acknowledged:
            self.problem("an acknowledged turn is lost", f"{len(said)} of {self.acknowledged}")
        self.acknowledged = max(self.acknowledged, len(said))
        if [n for n, _, _ in turns] != list(range(1, len(turns) + 1)):
            self.problem("turns are not numbered from 1 without gaps", [n for n, _, _ in turns])
        return sources

    def read(self, longest):
        path, label = self.text()
        _, ended = self.killed(["read", path, "-o", self.memory, "--eager"], longest)
        self.examine()
        out = step.mneme("read", path, "-o", self.memory, "--eager", check=False)
        if out.returncode:
            self.problem("a read does not go on", out.stderr[-300:])
        for x in self.examine() or []:
            if x["name"] == label and x["with_states"] != x["spans"]:
                self.problem("a resumed read leaves spans without states", x)
        step.mneme("forget", self.memory, label, check=False)
        return ended

    def ask(self, longest):
        # States are dropped by forgetting and reading lazily, so that asking stores some.
        path, label = self.text()
        step.mneme("read", path, "-o", self.memory, "--lazy")
        question = "What did she say to him about the house?"
        _, ended = self.killed(["ask", self.memory, question, "--always", "--top", 6], longest)
        self.examine()
        answers = [step.mneme_json("ask", self.memory, question, "--always", "--top", 6) for _ in range(2)]
        if answers[0]["answer"] != answers[1]["answer"]:
            self.problem("the second answer differs from the first")
        step.mneme("forget", self.memory, label, check=False)
        return ended

    def chat(self, longest):
        lines = []
        for _ in range(3):
            self.messages += 1
            lines += [f"Message {self.messages}: what happened at the house?", "/sources"]
        before = len(step.query(self.memory, "SELECT 1 FROM turns WHERE role = 'user'"))
        said, ended = self.killed(["chat", self.memory, "--max-tokens", 6], longest, lines)
        # /sources prints the first source after the reply before it is done.
        seen = sum(line.strip().startswith(self.first) and "tokens in" in line for line in said.splitlines())
        self.acknowledged = max(self.acknowledged, before + seen)
        self.examine()
        return ended

    def forget(self, longest):
        words = [marker(self.generator) for _ in range(3)]
        path, label = self.text(words)
        step.mneme("read", path, "-o", self.memory, "--eager")
        secrets = secrets_of(self.memory, label, words)
        if set(search(self.memory, secrets)) != set(secrets):
            self.problem("the search for bytes does not find what is there")
        _, ended = self.killed(["forget", self.memory, label], longest)
        # Whoever opens it next, though only to look, finishes what was begun.
        sources = self.examine()
        listed = any(x["name"] == label for x in sources or [])
        if sources is not None and not listed and (left := search(self.memory, secrets)):
            self.problem("a source is gone from the list, and its bytes are left", left)
        out = step.mneme("forget", self.memory, label, check=False)
        if (out.returncode == 0) != listed:
            self.problem("a forget is neither done nor to be done", out.stderr[-300:])
        if left := search(self.memory, secrets):
            self.problem("bytes of a forgotten source are left", left)
        self.examine()
        return ended


def timed(arguments, **more):
    started = time.time()
    step.mneme(*arguments, check=False, **more)
    return time.time() - started


def body(s):
    victim = Victim(s, random.Random(17))
    memory = victim.memory
    path, label = victim.text()
    longest = {"read": timed(["read", path, "-o", memory, "--eager"]),
               "ask": timed(["ask", memory, "What did she say to him about the house?", "--always", "--top", 6]),
               "chat": timed(["chat", memory, "--max-tokens", 6, "--session", "default"], input="Message 0: hello, who is there?\n"),
               "forget": timed(["forget", memory, label])}
    longest["chat"] *= 2
    s.note("seconds that each takes undisturbed", {k: round(v, 2) for k, v in longest.items()})
    victim.examine()
    order = [what for what, n in ROUNDS.items() for _ in range(max(1, n // 10) if s.quick else n)]
    victim.generator.shuffle(order)
    too_late, killed = collections.Counter(), collections.Counter()
    for done, what in enumerate(order):
        for _ in range(TRIES):
            ended = getattr(victim, what)(longest[what])
            too_late[what] += ended
            killed[what] += not ended
            if not ended:
                break
        if done % 10 == 9:
            print(f"     {done + 1} of {len(order)} crashes", flush=True)
    s.note("killed at random moments of", dict(killed))
    s.note("had ended before the kill, and were repeated", dict(too_late))
    s.check("processes that the kill met at work", sum(killed.values()) == len(order), sum(killed.values()), f"{len(order)}")
    s.note("messages of the chat, acknowledged", victim.acknowledged)
    s.check(f"{len(order)} crashes: opens, verifies, resumes, nothing double, no acknowledged turn lost, no forgotten byte left", not victim.problems, dict(victim.problems) or "")
    s.check("in the end a deep verify is content", step.mneme("verify", memory, "--deep", 5, check=False).returncode == 0)


if __name__ == "__main__":
    step.main(body)
