// needle: one fact between the sentences of a novel, and a question that the fact completes.
//
//   word      "The favourite fruit of Anna is mango."      asked: "The favourite fruit of Anna is"
//   number    "The secret number of Oslo is 48213."        asked: "The secret number of Oslo is"
//
// Of N tokens of prose the fact stands at the border of sentences nearest to depth * N. Distractors are
// facts of the same form on others, with values of their own, anywhere. Keys and values are drawn at
// random; no sentence of the prose holds one of them.
//
// spec      needle(form=word, digits=5, distractors=0)
// needs     novels in `books` for real prose, else it is generated
// source    Kamradt 2023, "Needle in a Haystack"; several keys as in Hsieh et al. 2024, arXiv:2404.06654
// departs   Kamradt's one fact and his essays are always the same, and a model judges the answer: here facts are
//           drawn, prose is of novels, and an answer is right that holds the value
#include "mneme/core/registry.h"
#include "mneme/tasks/haystack.h"
#include "mneme/tasks/recall.h"
#include "mneme/tasks/string_match.h"

#include <algorithm>
#include <array>
#include <fmt/format.h>
#include <span>

namespace mneme::tasks::needle {
namespace {

constexpr std::size_t kCandidates = 10;

// No name or value stands inside a common word, or sentences with that word would be lost as filler.
constexpr std::array<std::string_view, 40> kNames = {
    "Anna",   "Boris",   "Carmen", "Dmitri",  "Elena",  "Felix",  "Greta",  "Hugo",
    "Ingrid", "Ivan",    "Julia",  "Karim",   "Leila",  "Marco",  "Nadia",  "Oscar",
    "Paula",  "Quentin", "Rosa",   "Samir",   "Tanya",  "Ursula", "Victor", "Wanda",
    "Yusuf",  "Zoe",     "Amir",   "Bianca",  "Carlos", "Diana",  "Emil",   "Fatima",
    "Gustav", "Helga",   "Igor",   "Jasmine", "Kenji",  "Lucia",  "Miguel", "Olga"};
constexpr std::array<std::string_view, 18> kFruits = {
    "apple",   "apricot",   "avocado",    "banana", "blackberry", "cherry",
    "coconut", "cranberry", "grapefruit", "kiwi",   "lemon",      "mango",
    "melon",   "orange",    "papaya",     "peach",  "raspberry",  "strawberry"};
constexpr std::array<std::string_view, 18> kAnimals = {
    "badger", "camel",  "dolphin", "eagle",  "elephant", "falcon", "giraffe", "hamster", "kangaroo",
    "lizard", "monkey", "panda",   "parrot", "penguin",  "rabbit", "tiger",   "turtle",  "zebra"};
constexpr std::array<std::string_view, 14> kInstruments = {
    "accordion", "banjo", "cello", "clarinet",  "flute",   "guitar", "harmonica",
    "mandolin",  "oboe",  "piano", "saxophone", "trumpet", "tuba",   "violin"};
constexpr std::array<std::string_view, 14> kColours = {
    "beige", "blue",   "brown",  "crimson",   "green",  "indigo", "ivory",
    "pink",  "purple", "silver", "turquoise", "violet", "white",  "yellow"};
constexpr std::array<std::string_view, 20> kCities = {
    "Athens", "Berlin", "Boston",  "Cairo",  "Chicago", "Dublin", "Geneva",
    "Havana", "Lisbon", "Madrid",  "Milan",  "Moscow",  "Oslo",   "Prague",
    "Seoul",  "Tokyo",  "Toronto", "Venice", "Vienna",  "Warsaw"};

struct Subject {
  std::string_view what;
  std::span<const std::string_view> values;
};
constexpr std::array<Subject, 5> kSubjects = {{{"fruit", kFruits},
                                               {"animal", kAnimals},
                                               {"instrument", kInstruments},
                                               {"colour", kColours},
                                               {"city", kCities}}};

/// A number of so many digits that is not in `taken`.
std::string new_number(Generator& generator, std::int64_t digits,
                       const std::vector<std::string>& taken) {
  for (;;) {
    std::string out(1, static_cast<char>('1' + below(generator, 9)));
    while (static_cast<std::int64_t>(out.size()) < digits)
      out += static_cast<char>('0' + below(generator, 10));
    if (std::find(taken.begin(), taken.end(), out) == taken.end()) return out;
  }
}

}  // namespace

class Needle final : public RecallTask {
 public:
  struct Options {
    std::string form = "word";
    std::int64_t digits = 5, distractors = 0;
  };
  static void describe(Describe& d, Options& o) {
    d("form", o.form, one_of({"word", "number"}), "what the values are");
    d("digits", o.digits, within(2, 12), "digits of a number");
    d("distractors", o.distractors, within(0, 12), "facts of the same form on other keys");
  }
  Needle(const Options& o, const std::filesystem::path& data) : o_(o), prose_(data) {}

  [[nodiscard]] RecallSample draw(const RecallRequest& request, const Tokenizer& tokenizer,
                                  Generator& generator) const override {
    const auto facts = static_cast<std::size_t>(o_.distractors) + 1;
    const bool words = o_.form == "word";
    std::string stem;                       // of a fact: "The favourite fruit of"
    std::vector<std::string> keys, values;  // of the facts, the asked one first; then of candidates
    const auto add_keys = [&](const auto& from) {
      for (const auto i : distinct(generator, from.size(), facts)) keys.emplace_back(from[i]);
    };
    if (words) {
      const auto& subject = pick(kSubjects, generator);
      stem = fmt::format("The favourite {} of", subject.what);
      add_keys(kNames);
      const auto drawn = distinct(generator, subject.values.size(), std::max(facts, kCandidates));
      for (const auto i : drawn) values.emplace_back(subject.values[i]);
    } else {
      stem = "The secret number of";
      add_keys(kCities);
      while (values.size() < std::max(facts, kCandidates))
        values.push_back(new_number(generator, o_.digits, values));
    }

    std::vector<Fact> placed;
    for (std::size_t i = 0; i < facts; ++i) {
      const auto anywhere = generator.uniform();
      placed.push_back({fmt::format("{} {} is {}.", stem, keys[i], values[i]),
                        i == 0 && request.depth >= 0 ? request.depth : anywhere});
    }
    RecallSample out;
    out.question = fmt::format("\n\n{} {} is", stem, keys[0]);
    out.answers = {values[0]};
    for (std::size_t i = 0; i < kCandidates; ++i) out.candidates.push_back(" " + values[i]);
    auto avoided = values;
    avoided.insert(avoided.end(), keys.begin(), keys.end());
    auto text =
        fill({"needle", "", " ", "", out.question}, placed,
             prose_.filler(generator, without(std::move(avoided))), request.tokens, tokenizer);
    out.context = std::move(text.context);
    out.evidence = {text.facts.front()};
    return out;
  }

  [[nodiscard]] double score(std::string_view said, const RecallSample& sample) const override {
    return string_match_all(said, sample.answers);
  }
  [[nodiscard]] std::int64_t answer_tokens() const override { return 16; }

 private:
  Options o_;
  Prose prose_;
};

void enrol(Registry& r) {
  r.add<RecallTask, Needle>("needle", "one fact between the sentences of a novel, to be completed",
                            "needle-in-a-haystack-2023");
}

}  // namespace mneme::tasks::needle
