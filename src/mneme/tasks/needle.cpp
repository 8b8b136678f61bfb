// needle: one fact between the sentences of a novel, and a question that the fact completes.
//
//   word      "The favourite fruit of Anna is mango."      asked: "The favourite fruit of Anna is"
//   number    "The secret number of Oslo is 48213."        asked: "The secret number of Oslo is"
//
// Of N tokens of prose the fact stands at the border of sentences nearest to depth * N. Distractors are
// facts of the same form on others, with values of their own, anywhere. Keys and values are drawn at
// random; no sentence of the prose holds one of them. Facts of several depths in one text have keys and
// values of their own; words are of five subjects by turns, and what a fact of the same subject says is
// among the wrong answers. With `clauses` a sentence has up to so many, in random number, before its
// fact: so needles differ in length.
//
// spec      needle(form=word, digits=5, distractors=0, clauses=0)
// needs     novels in `books` for real prose, else it is generated
// source    Kamradt 2023, "Needle in a Haystack"; several keys as in Hsieh et al. 2024, arXiv:2404.06654
// departs   Kamradt's one fact and his essays are always the same, and a model judges the answer: here facts are
//           drawn, prose is of novels, and an answer is right that holds the value
#include "mneme/core/error.h"
#include "mneme/core/registry.h"
#include "mneme/tasks/haystack.h"
#include "mneme/tasks/recall.h"
#include "mneme/tasks/string_match.h"

#include <algorithm>
#include <array>
#include <fmt/format.h>
#include <span>
#include <utility>

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

// What may stand before a fact; no name or value is in it.
constexpr std::array<std::string_view, 8> kClauses = {
    "as every neighbour knew",
    "according to a letter that was found much later",
    "if the old clerk remembered rightly",
    "so it was said at the table that evening",
    "though nobody had thought to ask",
    "as the visitors were told more than once",
    "whatever else may have been forgotten",
    "by all accounts that have come down to us"};

/// "As every neighbour knew, according to ..., the secret number" of "The secret number".
std::string behind_clauses(std::string fact, std::size_t count, Generator& generator) {
  if (count == 0) return fact;
  std::string out;
  for (const auto i : distinct(generator, kClauses.size(), count))
    out += std::string(kClauses.at(i)) + ", ";
  out.front() = static_cast<char>(out.front() - 'a' + 'A');
  fact.front() = static_cast<char>(fact.front() - 'A' + 'a');
  return out + fact;
}

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
    std::int64_t digits = 5, distractors = 0, clauses = 0;
  };
  static void describe(Describe& d, Options& o) {
    d("form", o.form, one_of({"word", "number"}), "what the values are");
    d("digits", o.digits, within(2, 12), "digits of a number");
    d("distractors", o.distractors, within(0, 12), "facts of the same form on other keys");
    d("clauses", o.clauses, within(0, static_cast<double>(kClauses.size())),
      "the most clauses before a fact, whose number is drawn");
  }
  Needle(const Options& o, const std::filesystem::path& data) : o_(o), prose_(data) {}

  [[nodiscard]] RecallSample draw(const RecallRequest& request, const Tokenizer& tokenizer,
                                  Generator& generator) const override {
    return std::move(
        draw_together(request.tokens, {&request.depth, 1}, tokenizer, generator).front());
  }

  [[nodiscard]] std::vector<RecallSample> draw_together(std::int64_t tokens,
                                                        std::span<const double> depths,
                                                        const Tokenizer& tokenizer,
                                                        Generator& generator) const override {
    MNEME_ASSERT(!depths.empty());
    const auto asked = depths.size(), facts = asked + static_cast<std::size_t>(o_.distractors);
    const auto groups = groups_of(asked, facts, generator);
    const auto keys = keys_of(facts, generator);
    std::vector<std::vector<std::string>> values;  // of each group: of its facts, then others
    for (const auto& group : groups) values.push_back(values_of(group, generator));

    std::vector<Fact> placed(facts);
    std::vector<RecallSample> out(asked);
    for (std::size_t i = 0; i < facts; ++i) {
      const auto& group = groups[group_of(i, asked, groups.size())];
      const auto& own = values[group_of(i, asked, groups.size())];
      const auto place = static_cast<std::size_t>(
          std::find(group.facts.begin(), group.facts.end(), i) - group.facts.begin());
      const auto anywhere = generator.uniform();
      auto fact = fmt::format("{} {} is {}.", group.stem, keys[i], own[place]);
      if (o_.clauses > 0) {
        const auto clauses = below(generator, static_cast<std::size_t>(o_.clauses) + 1);
        fact = behind_clauses(std::move(fact), clauses, generator);
      }
      placed[i] = {std::move(fact), i < asked && depths[i] >= 0 ? depths[i] : anywhere};
      if (i >= asked) continue;
      out[i].question = fmt::format("\n\n{} {} is", group.stem, keys[i]);
      out[i].answers = {own[place]};
      out[i].candidates = {" " + own[place]};
      for (std::size_t v = 0; out[i].candidates.size() < kCandidates; ++v) {
        if (v != place) out[i].candidates.push_back(" " + own[v]);
      }
    }
    auto avoided = keys;
    for (const auto& some : values) avoided.insert(avoided.begin(), some.begin(), some.end());
    const auto tokens_of = [&](const RecallSample& sample) {
      return tokenizer.encode(sample.question).size();
    };
    const auto& longest = *std::max_element(
        out.begin(), out.end(),
        [&](const auto& a, const auto& b) { return tokens_of(a) < tokens_of(b); });
    const auto text =
        fill({"needle", "", " ", "", longest.question}, placed,
             prose_.filler(generator, without(std::move(avoided))), tokens, tokenizer);
    for (std::size_t i = 0; i < asked; ++i) {
      out[i].context = text.context;
      out[i].evidence = {text.facts[i]};
    }
    return out;
  }

  [[nodiscard]] double score(std::string_view said, const RecallSample& sample) const override {
    return string_match_all(said, sample.answers);
  }
  [[nodiscard]] std::int64_t answer_tokens() const override { return 16; }

 private:
  /// Facts of one subject, whose values may be taken for each other.
  struct Group {
    std::string stem;                           ///< "The favourite fruit of"
    std::span<const std::string_view> choices;  ///< of values; empty: numbers
    std::vector<std::size_t> facts;             ///< asked ones first
  };

  static std::size_t group_of(std::size_t fact, std::size_t asked, std::size_t groups) {
    return (fact < asked ? fact : (fact - asked) % asked) % groups;
  }

  [[nodiscard]] std::vector<Group> groups_of(std::size_t asked, std::size_t facts,
                                             Generator& generator) const {
    std::vector<Group> out;
    if (o_.form == "number") {
      out.push_back({"The secret number of", {}, {}});
    } else {
      const auto first = below(generator, kSubjects.size());
      for (std::size_t i = 0; i < std::min(asked, kSubjects.size()); ++i) {
        const auto& subject = kSubjects.at((first + i) % kSubjects.size());
        out.push_back({fmt::format("The favourite {} of", subject.what), subject.values, {}});
      }
    }
    for (std::size_t i = 0; i < facts; ++i) out[group_of(i, asked, out.size())].facts.push_back(i);
    return out;
  }

  [[nodiscard]] std::vector<std::string> keys_of(std::size_t facts, Generator& generator) const {
    std::vector<std::string> out;
    const auto draw_from = [&](const auto& names) {
      if (facts > names.size())
        throw Error(Errc::usage, fmt::format("needle: a text holds {} facts at most, not {}: ask "
                                             "for fewer depths or distractors",
                                             names.size(), facts));
      for (const auto i : distinct(generator, names.size(), facts)) out.emplace_back(names[i]);
    };
    if (o_.form == "word") {
      draw_from(kNames);
    } else {
      draw_from(kCities);
    }
    return out;
  }

  [[nodiscard]] std::vector<std::string> values_of(const Group& group, Generator& generator) const {
    const auto count = std::max(group.facts.size(), kCandidates);
    std::vector<std::string> out;
    if (group.choices.empty()) {
      while (out.size() < count) out.push_back(new_number(generator, o_.digits, out));
      return out;
    }
    if (count > group.choices.size())
      throw Error(Errc::usage, fmt::format("needle: '{} ...' has {} values, not {}: ask for fewer "
                                           "depths or distractors",
                                           group.stem, group.choices.size(), count));
    for (const auto i : distinct(generator, group.choices.size(), count))
      out.emplace_back(group.choices[i]);
    return out;
  }

  Options o_;
  Prose prose_;
};

void enrol(Registry& r) {
  r.add<RecallTask, Needle>("needle", "one fact between the sentences of a novel, to be completed",
                            "needle-in-a-haystack-2023");
}

}  // namespace mneme::tasks::needle
