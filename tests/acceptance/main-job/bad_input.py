"""Bad input of every kind: one clear line, exit status 1, nothing lost."""
import ctypes
import os
import pathlib
import random
import resource
import shutil
import signal
import stat
import subprocess
import time

import llama
import step

NOBODY = 65534


class Case:
    """Runs mneme on something bad while a good memory is at stake."""

    def __init__(self, s):
        self.s = s
        s.folder.chmod(0o755)
        self.text = s.folder / "good.txt"
        self.text.write_text(step.novel_text(12_000))
        self.memory = s.folder / "good.mneme"
        step.mneme("read", self.text, "-o", self.memory, "--eager")
        self.before = self.content(self.memory)

    @staticmethod
    def content(memory):
        shown = step.mneme_json("show", memory)
        return [(x["name"], x["bytes"], x["spans"], x["with_states"]) for x in shown["sources"]]

    def refused(self, what, *arguments, says=(), **more):
        """One line on stderr that holds one of `says`, status 1, and the good memory as it was."""
        try:
            out = step.mneme(*arguments, check=False, timeout=180, **more)
        except subprocess.TimeoutExpired:
            self.s.check(f"{what}: one line, status 1", False, "still at it after 180 seconds")
            return self.unharmed(what)
        seen = step.lines(out.stderr)
        said = " / ".join(seen)[:300]
        ok = out.returncode == 1 and len(seen) == 1 and (not says or any(word in said for word in says))
        self.s.check(f"{what}: one line, status 1", ok, f"status {out.returncode}: {said}")
        self.unharmed(what)

    def unharmed(self, what):
        sound = step.mneme("verify", self.memory, check=False)
        same = sound.returncode == 0 and self.content(self.memory) == self.before
        if not same:
            self.s.check(f"{what}: nothing is lost", False, sound.stderr[-200:])


def as_nobody():
    """Permissions mean nothing to root."""
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def without_rights():
    return dict(preexec_fn=as_nobody) if os.getuid() == 0 else {}


def files(case):
    s, folder, memory = case.s, case.s.folder, case.memory
    read = lambda name: ("read", folder / name, "-o", memory)
    (folder / "empty.txt").touch()
    (folder / "binary.txt").write_bytes(b"\x7fELF" + random.Random(1).randbytes(5000))
    (folder / "latin1.txt").write_bytes("Ein schöner Tag.\n".encode() * 20 + "schön\n".encode("latin-1"))
    case.refused("a missing file", *read("missing.txt"), says=["missing.txt"])
    case.refused("an empty file", *read("empty.txt"), says=["empty.txt"])
    case.refused("a binary file", *read("binary.txt"), says=["binary.txt"])
    case.refused("invalid UTF-8", *read("latin1.txt"), says=["latin1.txt"])
    (folder / "nothing").mkdir()
    case.refused("a folder without texts", *read("nothing"))
    case.refused("good and bad files together", "read", case.text, folder / "latin1.txt", "-o", memory, says=["latin1.txt"])

    secret = folder / "unreadable.txt"
    secret.write_text("Nobody may read this.\n")
    secret.chmod(0)
    case.refused("an unreadable file", "read", secret, "-o", "/dev/null" if os.getuid() == 0 else memory, says=["unreadable.txt"], **without_rights())

    line = folder / "line.txt"
    with line.open("wb") as out:
        for _ in range(200):
            out.write(b"x" * 1_000_000)
    case.refused("a line of 200 MB without a space", *read("line.txt"), says=["line.txt"])
    line.unlink()
    case.refused("a missing memory", "ask", folder / "missing.mneme", "Who?", says=["missing.mneme"])
    case.refused("a text in place of a memory", "ask", case.text, "Who?", says=["good.txt"])
    case.refused("an unknown source to forget", "forget", memory, "missing.txt", says=["missing.txt"])
    s.check("an empty question: one line, status 2", step.mneme("ask", memory, " ", check=False).returncode == 2)


def said_why(s, what, out):
    """Either the text does not fit: one line, status 1. Or it does and states do not: reading is done, and says so."""
    seen = step.lines(out.stderr)
    if out.returncode:
        s.check(f"{what}: one line, status 1", out.returncode == 1 and len(seen) == 1, f"status {out.returncode}: {' / '.join(seen)[:300]}")
    else:
        said = " / ".join([*seen, *step.lines(out.stdout)])
        s.check(f"{what}: it is said why states are not stored", "full" in said, f"status 0: {said[-300:]}")


def disks(case):
    s, folder = case.s, case.s.folder
    more = folder / "more.txt"
    more.write_text(step.novel_text(60_000, skip=50_000))

    # A limit on the size of files: what a full disk is, without needing one.
    limit = case.memory.stat().st_size + 300_000

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    out = step.mneme("read", more, "-o", case.memory, "--eager", check=False, preexec_fn=limited)
    said_why(s, "no room for a file to grow", out)
    s.check("no room for a file to grow: the memory is sound", step.mneme("verify", case.memory, check=False).returncode == 0)
    s.check("no room for a file to grow: what was there is there", set(case.before) <= set(case.content(case.memory)))
    for name, *_ in case.content(case.memory):
        if name.endswith("more.txt"):
            step.mneme("forget", case.memory, name)
    limit = 40_000  # also for `limited`
    new = folder / "new.mneme"
    case.refused("no room for a new memory", "read", more, "-o", new, preexec_fn=limited)

    mount = folder / "disk"
    mount.mkdir()
    if os.getuid() == 0 and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", mount], capture_output=True).returncode == 0:
        try:
            shutil.copy(case.memory, mount / "full.mneme") if case.memory.stat().st_size < 2_500_000 else step.mneme("read", case.text, "-o", mount / "full.mneme")
            before = case.content(mount / "full.mneme")
            out = step.mneme("read", more, "-o", mount / "full.mneme", "--eager", check=False)
            said_why(s, "a full disk", out)
            s.check("a full disk: the memory is sound", step.mneme("verify", mount / "full.mneme", check=False).returncode == 0)
            names = {x[0] for x in case.content(mount / "full.mneme")}
            s.check("a full disk: nothing is lost", {x[0] for x in before} <= names)
            # Asking goes on without storing anything.
            (mount / "filler").write_bytes(b"\0" * 100) if not fill(mount) else None
            answer = step.mneme_json("ask", mount / "full.mneme", "What is said of the children?", "--always")
            s.check("a full disk: questions are answered", answer["found"], answer["states_obstacle"] or "states were stored")
        finally:
            subprocess.run(["umount", mount])
    else:
        s.note("a full disk", "no file system could be mounted here: the limit on file sizes stands for it")


def fill(mount):
    try:
        with open(mount / "filler", "wb") as out:
            while True:
                out.write(b"\0" * 65536)
                out.flush()
    except OSError:
        return True


def folders(case):
    s = case.s
    folder = s.folder / "read-only"
    folder.mkdir()
    memory = folder / "memory.mneme"
    shutil.copy(case.memory, memory)
    memory.chmod(0o444)
    folder.chmod(0o555)
    before = memory.read_bytes()
    rights = without_rights()
    case.refused("a new memory in a read-only folder", "read", case.text, "-o", folder / "new.mneme", **rights)
    case.refused("reading into a read-only memory", "read", case.text, "-o", memory, **rights)
    case.refused("forgetting in a read-only memory", "forget", memory, case.before[0][0], **rights)
    out = step.mneme("ask", memory, "What is said of the children?", "--always", "--json", check=False, **rights)
    s.check("a read-only memory answers, and stores nothing", out.returncode == 0 and '"states_stored": 0' in out.stdout.replace('":', '": ').replace(":  ", ": "), out.stderr.strip()[-200:])
    s.check("a read-only memory is as it was", memory.read_bytes() == before and sorted(x.name for x in folder.iterdir()) == ["memory.mneme"])
    folder.chmod(0o755)


def other_model(folder):
    """A tiny llama model of random weights, with a byte tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                                 max_position_embeddings=4096)).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate(alphabet)} | {f"<unused{i}>": i for i in range(len(alphabet), 300)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


def damaged(case):
    s, folder = case.s, case.s.folder
    weights = pathlib.Path(step.weights())
    whole = weights.stat().st_size
    for name, size in (("half", whole // 2), ("without its last byte", whole - 1), ("its first 100 bytes", 100)):
        part = folder / "model.gguf"
        with weights.open("rb") as source, part.open("wb") as out:
            out.write(source.read(size))
        case.refused(f"a truncated model, {name}", "generate", "Hello", "--model", part, says=["model.gguf"])
        case.refused(f"a truncated model, {name}, to read with", "read", case.text, "-o", folder / "never.mneme", "--model", part, says=["model.gguf"])
    content = case.memory.read_bytes()
    for share in (0.999, 0.7, 0.3, 0.01):
        cut = folder / "cut.mneme"
        for suffix in ("", "-wal", "-shm"):
            pathlib.Path(f"{cut}{suffix}").unlink(missing_ok=True)
        cut.write_bytes(content[:int(len(content) * share)])
        for verb in (["ask", cut, "Who?"], ["verify", cut], ["read", case.text, "-o", cut]):
            case.refused(f"{verb[0]}, a memory cut to {share:g}", *verb, says=["cut.mneme"])

    other = folder / "other"
    other_model(other)
    case.refused("a memory of another model, --strict", "ask", case.memory, "Who?", "--always", "--strict", "--model", other, says=["other", "model"])
    copy = folder / "copy.mneme"
    shutil.copy(case.memory, copy)
    out = step.mneme("ask", copy, "What is said of the children?", "--always", "--json", "--model", other, check=False)
    s.check("a memory of another model, not strict: its states are a miss", out.returncode == 0 and '"document_tokens_evaluated":0' not in out.stdout.replace(" ", ""), out.stderr.strip()[-200:])
    s.check("and its own model's states are still there", case.content(copy)[0][3] == case.before[0][3])
    case.refused("a language model in place of an embedder", "read", case.text, "-o", folder / "never.mneme", "--embedder", other, says=["other"])


def two_writers(case):
    s, folder = case.s, case.s.folder
    big, small = folder / "big.txt", folder / "small.txt"
    big.write_text(step.novel_text(40_000, skip=200_000))
    small.write_text(step.novel_text(3_000, skip=300_000))
    memory = folder / "two.mneme"
    step.mneme("read", case.text, "-o", memory)
    first = subprocess.Popen([str(step.MNEME), "read", str(big), "-o", str(memory), "--eager"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 60
    while time.time() < deadline and first.poll() is None and len(step.mneme_json("show", memory)["sources"]) < 2:
        time.sleep(0.05)
    case.refused("a second reader into one memory", "read", small, "-o", memory, says=["two.mneme"])
    busy = first.poll() is None
    answer = step.mneme("ask", memory, "What is said of the children?", "--always", "--json", check=False)
    s.check("questions are answered meanwhile", answer.returncode == 0, answer.stderr.strip()[-200:])
    first.wait()
    s.check("the first reader was at work all the time", busy)
    s.check("the first reader ends well", first.returncode == 0, first.stderr.read().strip()[-200:])
    s.check("the memory holds what the first one read, whole", [x["with_states"] == x["spans"] for x in step.mneme_json("show", memory)["sources"] if x["name"].endswith("big.txt")] == [True])
    step.mneme("read", small, "-o", memory)
    s.check("and is sound", step.mneme("verify", memory, check=False).returncode == 0)


def body(s):
    case = Case(s)
    for part in (files, disks, folders, damaged, two_writers):
        part(case)
    s.check("the good memory is as it was", case.content(case.memory) == case.before)


if __name__ == "__main__":
    step.main(body)
