#include "bench/prompts/cache_prompts.h"

#include "mneme/core/generator.h"

#include <array>
#include <fmt/format.h>
#include <string_view>

namespace mneme::bench {
namespace {

using Text = std::string_view;

/// What is asked for in any words.
constexpr std::array<Text, 150> kTasks{"bake sourdough bread",
                                       "change a bicycle tyre",
                                       "descale a kettle",
                                       "prune an apple tree",
                                       "write a cover letter",
                                       "train a puppy to sit",
                                       "unclog a kitchen sink",
                                       "knit a woollen scarf",
                                       "set up a home router",
                                       "make fresh pasta",
                                       "remove candle wax from a carpet",
                                       "grow tomatoes on a balcony",
                                       "tune a guitar",
                                       "apply for a passport",
                                       "repair a leaking tap",
                                       "brew espresso",
                                       "fold a paper crane",
                                       "start a compost heap",
                                       "sharpen a kitchen knife",
                                       "paint a wooden fence",
                                       "learn to juggle",
                                       "clean a camera lens",
                                       "plan a birthday party",
                                       "sew on a button",
                                       "build a bookshelf",
                                       "remove a tree stump",
                                       "write a will",
                                       "ferment cabbage",
                                       "polish leather shoes",
                                       "install a ceiling lamp",
                                       "train for a marathon",
                                       "catch a mouse without harming it",
                                       "wash a down jacket",
                                       "back up a laptop",
                                       "open a savings account",
                                       "pickle cucumbers",
                                       "calm a crying baby",
                                       "pitch a tent",
                                       "tie a bow tie",
                                       "remove rust from iron tools",
                                       "bleed a radiator",
                                       "graft a rose",
                                       "carve a pumpkin",
                                       "insulate an attic",
                                       "speak in front of an audience",
                                       "negotiate a higher salary",
                                       "lay bathroom tiles",
                                       "roast a chicken",
                                       "take care of an orchid",
                                       "change the oil of a car",
                                       "fix a broken zip",
                                       "replace a cracked phone screen",
                                       "keep bees",
                                       "make yoghurt",
                                       "read sheet music",
                                       "find a cheap flight",
                                       "whiten old curtains",
                                       "make a snowman",
                                       "learn to swim as an adult",
                                       "choose a mattress",
                                       "frame a picture",
                                       "get rid of ants",
                                       "write a sonnet",
                                       "smoke a trout",
                                       "plaster a wall",
                                       "file a tax return",
                                       "treat a bee sting",
                                       "store winter tyres",
                                       "plant garlic",
                                       "mend a sock",
                                       "play chess openings",
                                       "defrost a freezer",
                                       "freeze strawberries",
                                       "season a cast iron pan",
                                       "hang wallpaper",
                                       "raise chickens",
                                       "build a kite",
                                       "clean suede boots",
                                       "meditate",
                                       "boil an egg",
                                       "stop a nosebleed",
                                       "set a mousetrap",
                                       "cut glass",
                                       "dye a shirt",
                                       "make candles",
                                       "tame a parrot",
                                       "lower a high fever",
                                       "wax skis",
                                       "clear a frozen pipe",
                                       "remember names",
                                       "learn Morse code",
                                       "cook rice",
                                       "quit smoking",
                                       "sell an old car",
                                       "rent out a flat",
                                       "trim a beard",
                                       "preserve lemons",
                                       "make soap",
                                       "solder a wire",
                                       "develop black and white film",
                                       "read a topographic map",
                                       "start a campfire in the rain",
                                       "wrap a fragile parcel",
                                       "refinish a wooden table",
                                       "install solar panels",
                                       "adopt a cat",
                                       "ride a unicycle",
                                       "write a wedding speech",
                                       "balance a household budget",
                                       "organise a book club",
                                       "recycle batteries",
                                       "make a family tree",
                                       "cure insomnia",
                                       "weave a basket",
                                       "strengthen my lower back",
                                       "learn touch typing",
                                       "make cheese",
                                       "cancel a magazine subscription",
                                       "contest a parking ticket",
                                       "replace a light switch",
                                       "remove a splinter",
                                       "sail a small dinghy",
                                       "mount a television on the wall",
                                       "clean silver cutlery",
                                       "harvest rainwater",
                                       "hire a plumber",
                                       "teach a child to read",
                                       "find lost keys",
                                       "prepare for a job interview",
                                       "trap a wasp",
                                       "make elderflower syrup",
                                       "restore old photographs",
                                       "get candle soot off a ceiling",
                                       "press flowers",
                                       "iron a shirt",
                                       "remove red wine from a sofa",
                                       "repot a cactus",
                                       "measure my blood pressure",
                                       "make a puppet theatre",
                                       "build a birdhouse",
                                       "learn the accordion",
                                       "survive a thunderstorm outdoors",
                                       "donate blood",
                                       "vote by mail",
                                       "make mulled wine",
                                       "waterproof a tent",
                                       "start a podcast",
                                       "sharpen a chainsaw",
                                       "stretch a canvas",
                                       "move a piano"};

/// A thing that a place has two of, told apart by one word.
struct Pair {
  Text one, other, noun;
};
constexpr std::array<Pair, 15> kPairs{{{"highest", "lowest", "point"},
                                       {"first", "last", "ruler"},
                                       {"largest", "smallest", "lake"},
                                       {"oldest", "newest", "bridge"},
                                       {"fastest", "slowest", "train"},
                                       {"cheapest", "dearest", "hotel"},
                                       {"northern", "southern", "border"},
                                       {"summer", "winter", "temperature"},
                                       {"morning", "evening", "ferry"},
                                       {"import", "export", "duty"},
                                       {"left", "right", "bank"},
                                       {"inner", "outer", "wall"},
                                       {"upper", "lower", "chamber"},
                                       {"arrival", "departure", "hall"},
                                       {"male", "female", "life expectancy"}}};
constexpr std::array<Text, 10> kPlaces{"Norway",   "Peru",  "Japan",   "Kenya", "Canada",
                                       "Portugal", "Egypt", "Vietnam", "Chile", "Poland"};

constexpr std::array<Text, 10> kLoose{"How do I {}?",
                                      "What is the best way to {}?",
                                      "Explain step by step how to {}.",
                                      "I want to {}. Where should I begin?",
                                      "Any advice for someone who has never tried to {}?",
                                      "Please give me instructions so that I can {}.",
                                      "My neighbour asked me to {} and I have no idea how.",
                                      "Is there an easy method to {} at home?",
                                      "What do I need if I am going to {} this weekend?",
                                      "Tell me what a professional would do to {}."};
// {0}: the word, {1}: the noun, {2}: the place.
constexpr std::array<Text, 10> kTight{"What is the {0} {1} of {2}?",
                                      "Tell me the {0} {1} of {2}.",
                                      "Which is the {0} {1} in {2}?",
                                      "{2}: {0} {1}?",
                                      "I need to know the {0} {1} of {2}.",
                                      "Could you name the {0} {1} of {2}?",
                                      "Do you know {2}'s {0} {1}?",
                                      "Find the {0} {1} of {2} for me.",
                                      "My teacher asked about {2} and its {0} {1}.",
                                      "In {2}, what would be the {0} {1}?"};
constexpr std::array<Text, 5> kOpenings{"", "Hello! ", "Quick question. ",
                                        "Sorry to bother you, but I am stuck. ",
                                        "Hi there, hope you are well. "};
constexpr std::array<Text, 4> kClosings{"", " Thanks.", " Please keep it short.",
                                        " I am in a hurry."};

constexpr std::size_t kIntents = kTasks.size() + kPairs.size() * kPlaces.size();
static_assert(kIntents == 300 && !kTasks.back().empty() && !kLoose.back().empty() &&
              !kTight.back().empty());

std::size_t below(Generator& generator, std::size_t n) {
  return static_cast<std::size_t>(generator.uniform() * static_cast<double>(n));
}
template <std::size_t n>
Text one_of(Generator& generator, const std::array<Text, n>& texts) {
  return texts[below(generator, n)];
}

}  // namespace

std::vector<CachePrompt> cache_prompts(std::int64_t n, std::uint64_t seed) {
  std::vector<CachePrompt> out;
  for (std::int64_t i = 0; i < n; ++i) {
    auto generator = Generator(seed).split(static_cast<std::uint64_t>(i));
    CachePrompt prompt;
    const auto intent = below(generator, kIntents);
    std::string asked;
    if (intent < kTasks.size()) {
      asked = fmt::format(fmt::runtime(one_of(generator, kLoose)), kTasks[intent]);
      prompt.answer = fmt::format("how to {}", kTasks[intent]);
    } else {
      const auto tight = intent - kTasks.size();
      const auto& pair = kPairs[tight / kPlaces.size()];
      const auto place = kPlaces[tight % kPlaces.size()];
      const auto word = generator.uniform() < 0.5 ? pair.one : pair.other;
      asked = fmt::format(fmt::runtime(one_of(generator, kTight)), word, pair.noun, place);
      prompt.answer = fmt::format("{} {} of {}", word, pair.noun, place);
      prompt.tight = true;
    }
    const auto opening = one_of(generator, kOpenings);
    prompt.text = fmt::format("{}{}{}", opening, asked, one_of(generator, kClosings));
    out.push_back(std::move(prompt));
  }
  return out;
}

}  // namespace mneme::bench
