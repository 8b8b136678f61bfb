// niah: RULER's needles in a haystack: values of keys, hidden in noise, in prose or among other needles.
//
//   needle    One of the special magic numbers for quiet-lantern is: 4085713.
//   asked     all values of `queries` of the keys; each key has `values` of them, a needle each
//   worth     the share of the asked values that the answer holds
//
// RULER's eight tasks are
//   niah_single_1   niah                                       niah_multikey_2   niah(haystack=needle)
//   niah_single_2   niah(haystack=essay)                       niah_multikey_3   niah(haystack=needle, type_key=uuids,
//   niah_single_3   niah(haystack=essay, type_value=uuids)                            type_value=uuids)
//   niah_multikey_1 niah(haystack=essay, keys=4)               niah_multivalue   niah(haystack=essay, values=4)
//                                                              niah_multiquery   niah(haystack=essay, queries=4)
//
// spec      niah(haystack=noise, type_key=words, type_value=numbers, keys=1, values=1, queries=1)
// needs     for essays: novels in `books`, else prose is generated
// source    Hsieh et al. 2024, arXiv:2404.06654
// departs   the essays are a substitute: sentences of novels instead of Paul Graham's; words are of our own lists; keys
//           are asked in the order of their needles; where a depth is given, all asked needles stand there
#include "mneme/core/registry.h"
#include "mneme/tasks/haystack.h"
#include "mneme/tasks/recall.h"
#include "mneme/tasks/ruler_parts.h"
#include "mneme/tasks/string_match.h"

#include <algorithm>
#include <cmath>
#include <fmt/format.h>
#include <optional>

namespace mneme::tasks::niah {
namespace {

// RULER puts needles between the sentences of an essay at these many depths, from 0 to 100 percent.
constexpr std::size_t kDepths = 40;

struct Needle {
  std::size_t key = 0;
  std::string value;
  double depth = 0;
};

}  // namespace

class Niah final : public RecallTask {
 public:
  struct Options {
    std::string haystack = "noise", type_key = "words", type_value = "numbers";
    std::int64_t keys = 1, values = 1, queries = 1;
  };
  static void describe(Describe& d, Options& o) {
    d("haystack", o.haystack, one_of({"noise", "essay", "needle"}),
      "what hides them: five sentences over and over, substitute text for essays, other needles");
    d("type_key", o.type_key, one_of({"words", "numbers", "uuids"}), "what keys are");
    d("type_value", o.type_value, one_of({"words", "numbers", "uuids"}), "what values are");
    d("keys", o.keys, within(1, 64), "keys; at least as many as are asked");
    d("values", o.values, within(1, 64), "values of a key");
    d("queries", o.queries, within(1, 64), "keys that are asked");
  }
  Niah(const Options& o, const std::filesystem::path& data) : o_(o) {
    if (o.haystack == "essay") prose_.emplace(data);
  }

  [[nodiscard]] RecallSample draw(const RecallRequest& request, const Tokenizer& tokenizer,
                                  Generator& generator) const override {
    const auto queries = static_cast<std::size_t>(o_.queries),
               per_key = static_cast<std::size_t>(o_.values), asked = queries * per_key;
    const auto count = std::max(static_cast<std::size_t>(o_.keys), queries);
    const auto make_value = [&] { return random_item(o_.type_value, generator); };
    const auto keys = new_items(count, {}, [&] { return random_item(o_.type_key, generator); });
    auto taken = keys;
    const auto values = new_items(count * per_key, taken, make_value);
    taken.insert(taken.end(), values.begin(), values.end());

    // The first keys are asked. In the text's order, which facts at one border keep.
    std::vector<Needle> needles;
    const auto depths = drawn_depths(values.size(), generator);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const auto given = i < asked && request.depth >= 0;
      needles.push_back({i / per_key, values[i], given ? request.depth : depths[i]});
    }
    std::stable_sort(needles.begin(), needles.end(),
                     [](const auto& a, const auto& b) { return a.depth < b.depth; });

    RecallSample out;
    std::vector<Fact> facts;
    std::vector<std::string> asked_keys, others;
    for (const auto& needle : needles) {
      facts.push_back({written(keys[needle.key], needle.value), needle.depth});
      if (needle.key >= queries) {
        others.push_back(needle.value);
        continue;
      }
      out.answers.push_back(needle.value);
      if (std::find(asked_keys.begin(), asked_keys.end(), keys[needle.key]) == asked_keys.end())
        asked_keys.push_back(keys[needle.key]);
    }
    const bool one = asked == 1;
    const auto type = one ? o_.type_value.substr(0, o_.type_value.size() - 1) : o_.type_value;
    out.question = fmt::format(
        "\nWhat {0} the special magic {1} for {2} mentioned in the provided text? The special "
        "magic {1} for {2} mentioned in the provided text {3}",
        one ? "is" : "are all", type, listed(asked_keys), one ? "is" : "are");
    const Frame frame{"niah",
                      fmt::format("{} special magic {} hidden within the following text. Make sure "
                                  "to memorize it. I will quiz you about the {} afterwards.\n",
                                  one ? "A" : "Some", type + (one ? " is" : " are"), type),
                      o_.haystack == "essay" ? " " : "\n", "", out.question};
    auto text = fill(frame, facts, filler(generator, taken), request.tokens, tokenizer);
    out.context = std::move(text.context);
    for (std::size_t i = 0; i < needles.size(); ++i) {
      if (needles[i].key < queries) out.evidence.push_back(text.facts[i]);
    }

    out.candidates = {" " + listed(out.answers)};
    for (std::size_t i = 1; i < kRulerCandidates; ++i) {
      // Values of other keys first.
      std::vector<std::string> wrong;
      while (wrong.size() < asked && !others.empty()) {
        wrong.push_back(others.back());
        others.pop_back();
      }
      for (auto& value : new_items(asked - wrong.size(), taken, make_value)) {
        taken.push_back(value);
        wrong.push_back(std::move(value));
      }
      out.candidates.push_back(" " + listed(wrong));
    }
    return out;
  }

  [[nodiscard]] double score(std::string_view said, const RecallSample& sample) const override {
    return string_match_all(said, sample.answers);
  }
  [[nodiscard]] std::int64_t answer_tokens() const override { return 128; }

 private:
  static std::string random_item(std::string_view type, Generator& generator) {
    if (type == "words") return random_word(generator);
    return type == "numbers" ? random_number(generator, 7) : random_uuid(generator);
  }

  [[nodiscard]] std::string written(std::string_view key, std::string_view value) const {
    return fmt::format("One of the special magic {} for {} is: {}.", o_.type_value, key, value);
  }

  [[nodiscard]] std::vector<double> drawn_depths(std::size_t count, Generator& generator) const {
    std::vector<double> out;
    if (o_.haystack == "essay" && count <= kDepths) {
      for (const auto i : distinct(generator, kDepths, count)) {
        const auto percent = 100.0 * static_cast<double>(i) / (kDepths - 1);
        out.push_back(std::round(percent) / 100);
      }
    } else {
      while (out.size() < count) out.push_back(generator.uniform());
    }
    return out;
  }

  [[nodiscard]] Filler filler(Generator& generator, const std::vector<std::string>& taken) const {
    if (prose_) return prose_->filler(generator, without(taken));
    if (o_.haystack == "noise") return [] { return std::string(kNoise); };
    return [this, &generator, taken]() -> std::optional<std::string> {
      const auto other = [&](const std::string& type) {
        return new_items(1, taken, [&] { return random_item(type, generator); }).front();
      };
      const auto key = other(o_.type_key);
      return written(key, other(o_.type_value));
    };
  }

  Options o_;
  std::optional<Prose> prose_;
};

void enrol(Registry& r) {
  r.add<RecallTask, Niah>("niah", "RULER: values of keys hidden in noise, prose or other needles",
                          "ruler-2024");
}

}  // namespace mneme::tasks::niah
