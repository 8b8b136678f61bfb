#include "mneme/tasks/word_list.h"

#include <array>

namespace mneme::tasks {
namespace {

constexpr std::array<std::string_view, 150> kAdjectives = {
    "able",    "ancient", "angry",  "bitter",   "blind",   "bold",    "brave",   "brief",
    "bright",  "broad",   "calm",   "cautious", "cheap",   "civil",   "clean",   "clever",
    "cold",    "common",  "cruel",  "damp",     "dark",    "dear",    "deep",    "dense",
    "dull",    "eager",   "early",  "elastic",  "empty",   "exact",   "faint",   "fair",
    "false",   "famous",  "fancy",  "fast",     "fierce",  "final",   "firm",    "flat",
    "foreign", "fragile", "frank",  "fresh",    "gentle",  "giant",   "glad",    "grand",
    "grave",   "greedy",  "happy",  "harsh",    "hasty",   "heavy",   "hollow",  "honest",
    "humble",  "hungry",  "icy",    "idle",     "jolly",   "keen",    "large",   "lazy",
    "legal",   "lively",  "local",  "lonely",   "loose",   "loud",    "loyal",   "lucky",
    "mad",     "major",   "mighty", "mild",     "minor",   "modest",  "moist",   "narrow",
    "nasty",   "neat",    "noble",  "noisy",    "odd",     "pale",    "plain",   "polite",
    "proud",   "quick",   "quiet",  "rapid",    "rare",    "raw",     "ripe",    "rough",
    "rude",    "sacred",  "safe",   "salty",    "secret",  "severe",  "shallow", "sharp",
    "shiny",   "shy",     "silent", "simple",   "sincere", "slim",    "sleepy",  "slow",
    "smooth",  "soft",    "solid",  "sour",     "spare",   "stale",   "steep",   "sticky",
    "stiff",   "strange", "strict", "sturdy",   "sudden",  "sweet",   "swift",   "tame",
    "tender",  "thick",   "thin",   "tidy",     "tiny",    "tough",   "urgent",  "vague",
    "vain",    "vast",    "vivid",  "warm",     "weak",    "wealthy", "weird",   "wicked",
    "wild",    "wise",    "witty",  "wooden",   "young",   "zealous"};

constexpr std::array<std::string_view, 191> kNouns = {
    "acorn",    "actor",   "album",   "anchor",  "ankle",   "apron",    "arrow",   "attic",
    "author",   "bacon",   "badge",   "barrel",  "basket",  "beach",    "beaver",  "bishop",
    "blanket",  "blossom", "bottle",  "bridge",  "bronze",  "brush",    "bucket",  "button",
    "cabin",    "cable",   "camera",  "canal",   "candle",  "canyon",   "carpet",  "castle",
    "cattle",   "ceiling", "chapel",  "chicken", "chimney", "circus",   "closet",  "cloud",
    "coach",    "coffee",  "collar",  "comet",   "copper",  "corner",   "cotton",  "cousin",
    "cradle",   "crater",  "crayon",  "crystal", "curtain", "daisy",    "dentist", "desert",
    "diamond",  "dinner",  "donkey",  "dragon",  "drawer",  "eagle",    "engine",  "falcon",
    "feather",  "fence",   "ferry",   "fiddle",  "finger",  "forest",   "fossil",  "fountain",
    "funnel",   "galaxy",  "garlic",  "ghost",   "glove",   "grocer",   "guitar",  "hammer",
    "harbor",   "hat",     "helmet",  "hockey",  "horizon", "hotel",    "island",  "jacket",
    "jewel",    "jungle",  "kettle",  "kitten",  "ladder",  "lantern",  "lawyer",  "leather",
    "lemon",    "letter",  "lizard",  "locket",  "magnet",  "mansion",  "marble",  "market",
    "meadow",   "medal",   "melody",  "mirror",  "mitten",  "monkey",   "muffin",  "museum",
    "mustard",  "napkin",  "needle",  "nephew",  "orchard", "oven",     "oyster",  "paddle",
    "palace",   "panther", "parcel",  "parrot",  "pebble",  "pencil",   "pepper",  "pillow",
    "pirate",   "planet",  "pocket",  "pony",    "potato",  "puppet",   "puzzle",  "quarry",
    "quilt",    "rabbit",  "raft",    "ribbon",  "river",   "rocket",   "saddle",  "sailor",
    "sandal",   "scarf",   "school",  "shadow",  "shelter", "shovel",   "signal",  "silver",
    "sister",   "slipper", "soldier", "spider",  "spoon",   "squirrel", "stable",  "station",
    "statue",   "sugar",   "summer",  "tailor",  "teapot",  "temple",   "thunder", "ticket",
    "tiger",    "timber",  "toaster", "tower",   "tractor", "trumpet",  "tunnel",  "turtle",
    "umbrella", "uncle",   "valley",  "velvet",  "village", "violin",   "wagon",   "walnut",
    "whistle",  "willow",  "window",  "winter",  "wizard",  "yacht",    "zebra"};

constexpr std::array<std::string_view, 163> kVerbs = {
    "absorb",    "accept",      "admire",    "adopt",    "advise",   "allow",    "announce",
    "appear",    "arrive",      "attach",    "avoid",    "bake",     "beg",      "behave",
    "belong",    "blame",       "bless",     "borrow",   "bounce",   "breathe",  "bury",
    "calculate", "carry",       "chase",     "choose",   "climb",    "collect",  "compare",
    "complain",  "confess",     "confuse",   "connect",  "consider", "cough",    "crawl",
    "dance",     "decide",      "decorate",  "defend",   "delay",    "deliver",  "depend",
    "describe",  "deserve",     "destroy",   "discover", "divide",   "drift",    "earn",
    "educate",   "embrace",     "encourage", "escape",   "examine",  "expand",   "explain",
    "explore",   "fasten",      "fetch",     "float",    "follow",   "forgive",  "gather",
    "greet",     "grumble",     "guess",     "happen",   "hesitate", "hover",    "hurry",
    "identify",  "ignore",      "imagine",   "improve",  "inform",   "inject",   "invent",
    "invite",    "juggle",      "kneel",     "knit",     "launch",   "lend",     "listen",
    "manage",    "melt",        "memorize",  "mend",     "mourn",    "multiply", "negotiate",
    "nod",       "notice",      "obey",      "observe",  "obtain",   "occur",    "offer",
    "overflow",  "participate", "perform",   "polish",   "ponder",   "postpone", "pray",
    "prefer",    "prepare",     "pretend",   "protect",  "punish",   "realize",  "receive",
    "recognize", "recommend",   "reflect",   "refuse",   "rejoice",  "release",  "rely",
    "remember",  "remind",      "remove",    "repair",   "repeat",   "rescue",   "retire",
    "reveal",    "scatter",     "scold",     "scream",   "scribble", "seize",    "separate",
    "shiver",    "shrug",       "sigh",      "sneeze",   "soak",     "sparkle",  "squeeze",
    "stumble",   "suffer",      "suggest",   "supply",   "suppose",  "surprise", "surround",
    "suspect",   "swallow",     "tease",     "tolerate", "trace",    "travel",   "tremble",
    "unite",     "vanish",      "wander",    "welcome",  "whisper",  "whirl",    "wonder",
    "worry",     "yawn"};

}  // namespace

std::span<const std::string_view> adjectives() noexcept { return kAdjectives; }
std::span<const std::string_view> nouns() noexcept { return kNouns; }
std::span<const std::string_view> verbs() noexcept { return kVerbs; }

}  // namespace mneme::tasks
