// variable_tracking: RULER's chains of assignments, scattered in noise: who has the first one's value?
//
//   chain     VAR AGXQB = 48213   VAR LLTRM = VAR AGXQB   VAR PQZOE = VAR LLTRM   ...      1 + hops of them
//   asked     all variables of the first chain, by their value
//   worth     the share of them that the answer holds
//
// spec      variable_tracking(haystack=noise, chains=1, hops=4, shots=1)
// needs     for essays: novels in `books`, else prose is generated
// source    Hsieh et al. 2024, arXiv:2404.06654
// departs   the essays are a substitute: sentences of novels instead of Paul Graham's; an example has five pieces of
//           noise, RULER's as many as fit into 500 tokens; where a depth is given, the asked chain stands there in
//           one piece
#include "mneme/core/registry.h"
#include "mneme/tasks/haystack.h"
#include "mneme/tasks/recall.h"
#include "mneme/tasks/ruler_parts.h"
#include "mneme/tasks/string_match.h"

#include <algorithm>
#include <fmt/format.h>
#include <limits>
#include <optional>

namespace mneme::tasks::variable_tracking {
namespace {

constexpr std::size_t kNameLetters = 5, kExampleNameLetters = 3, kExamplePieces = 5;
constexpr std::int64_t kNoLimit = std::numeric_limits<std::int64_t>::max();
constexpr std::string_view kTask =
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n";

std::string random_name(Generator& generator, std::size_t letters) {
  std::string out;
  while (out.size() < letters) out += static_cast<char>('A' + below(generator, 26));
  return out;
}

struct Chain {
  std::string value;
  std::vector<std::string> names;
};

std::vector<Chain> random_chains(std::size_t count, std::size_t names, std::size_t letters,
                                 Generator& generator) {
  const auto all = new_items(count * names, {}, [&] { return random_name(generator, letters); });
  const auto values = new_items(count, {}, [&] { return random_number(generator, 5); });
  std::vector<Chain> out;
  for (std::size_t i = 0; i < count; ++i) {
    const auto first = all.begin() + static_cast<std::ptrdiff_t>(i * names);
    out.push_back({values[i], {first, first + static_cast<std::ptrdiff_t>(names)}});
  }
  return out;
}

/// An assignment, and of which chain.
struct Step {
  std::size_t chain = 0;
  Fact fact;
};

/// Chains scattered over the text, each in its order; the first at `depth`, if that is not below 0.
std::vector<Step> scattered(const std::vector<Chain>& chains, std::string_view end, double depth,
                            Generator& generator) {
  std::vector<Step> out;
  for (std::size_t i = 0; i < chains.size(); ++i) {
    std::vector<double> depths;
    for (std::size_t j = 0; j < chains[i].names.size(); ++j) depths.push_back(generator.uniform());
    std::sort(depths.begin(), depths.end());
    for (std::size_t j = 0; j < depths.size(); ++j) {
      const auto from = j == 0 ? chains[i].value : "VAR " + chains[i].names[j - 1];
      out.push_back({i,
                     {fmt::format("VAR {} = {}{}", chains[i].names[j], from, end),
                      i == 0 && depth >= 0 ? depth : depths[j]}});
    }
  }
  std::stable_sort(out.begin(), out.end(),
                   [](const auto& a, const auto& b) { return a.fact.depth < b.fact.depth; });
  return out;
}

std::vector<Fact> facts_of(const std::vector<Step>& steps) {
  std::vector<Fact> out;
  for (const auto& step : steps) out.push_back(step.fact);
  return out;
}

std::string joined(const std::vector<std::string>& names) {
  std::string out;
  for (const auto& name : names) out += " " + name;
  return out;
}

std::string question(const Chain& chain) {
  return fmt::format(
      "\nQuestion: Find all variables that are assigned the value {0} in the text above. Answer: "
      "According to the chain(s) of variable assignment in the text above, {1} variables are "
      "assigned the value {0}, they are:",
      chain.value, chain.names.size());
}

}  // namespace

class VariableTracking final : public RecallTask {
 public:
  struct Options {
    std::string haystack = "noise";
    std::int64_t chains = 1, hops = 4, shots = 1;
  };
  static void describe(Describe& d, Options& o) {
    d("haystack", o.haystack, one_of({"noise", "essay"}),
      "what hides them: five sentences over and over, or substitute text for essays");
    d("chains", o.chains, within(1, 64), "chains, the first of which is asked");
    d("hops", o.hops, within(1, 64),
      "assignments of a variable's value to the next one, in a chain");
    d("shots", o.shots, within(0, 8), "solved examples before the text");
  }
  VariableTracking(const Options& o, const std::filesystem::path& data) : o_(o) {
    if (o.haystack == "essay") prose_.emplace(data);
  }

  [[nodiscard]] RecallSample draw(const RecallRequest& request, const Tokenizer& tokenizer,
                                  Generator& generator) const override {
    const auto count = static_cast<std::size_t>(o_.chains),
               names = static_cast<std::size_t>(o_.hops) + 1;
    std::string before;
    for (std::int64_t i = 0; i < o_.shots; ++i)
      before += example(count, names, tokenizer, generator) + "\n\n";
    before += kTask;
    const auto chains = random_chains(count, names, kNameLetters, generator);
    const auto steps =
        scattered(chains, o_.haystack == "essay" ? "." : "", request.depth, generator);
    std::vector<std::string> taken;
    for (const auto& chain : chains) {
      taken.push_back(chain.value);
      taken.insert(taken.end(), chain.names.begin(), chain.names.end());
    }

    RecallSample out;
    out.question = question(chains[0]);
    out.answers = chains[0].names;
    auto text =
        fill({"variable_tracking", before, o_.haystack == "essay" ? " " : "\n", "", out.question},
             facts_of(steps), filler(generator, taken), request.tokens, tokenizer);
    out.context = std::move(text.context);
    for (std::size_t i = 0; i < steps.size(); ++i) {
      if (steps[i].chain == 0) out.evidence.push_back(text.facts[i]);
    }

    out.candidates = {joined(out.answers)};
    for (std::size_t i = 1; i < chains.size() && i < kRulerCandidates; ++i)
      out.candidates.push_back(joined(chains[i].names));
    while (out.candidates.size() < kRulerCandidates) {
      // A chain that is followed for a while and then lost.
      auto wrong = out.answers;
      const auto kept = below(generator, names);
      const auto others =
          new_items(names - kept, taken, [&] { return random_name(generator, kNameLetters); });
      std::copy(others.begin(), others.end(), wrong.begin() + static_cast<std::ptrdiff_t>(kept));
      taken.insert(taken.end(), others.begin(), others.end());
      out.candidates.push_back(joined(wrong));
    }
    return out;
  }

  [[nodiscard]] double score(std::string_view said, const RecallSample& sample) const override {
    return string_match_all(said, sample.answers);
  }
  [[nodiscard]] std::int64_t answer_tokens() const override { return 6 * (o_.hops + 1); }

 private:
  [[nodiscard]] Filler filler(Generator& generator, std::vector<std::string> taken) const {
    if (prose_) return prose_->filler(generator, without(std::move(taken)));
    return [] { return std::string(kNoise); };
  }

  static std::string example(std::size_t count, std::size_t names, const Tokenizer& tokenizer,
                             Generator& generator) {
    const auto chains = random_chains(count, names, kExampleNameLetters, generator);
    const auto steps = scattered(chains, "", -1, generator);
    const auto asked = question(chains[0]);
    const auto noise = [left = kExamplePieces]() mutable -> std::optional<std::string> {
      if (left == 0) return std::nullopt;
      --left;
      return std::string(kNoise);
    };
    const auto text = fill({"variable_tracking", std::string(kTask), "\n", "", asked},
                           facts_of(steps), noise, kNoLimit, tokenizer);
    return text.context + asked + joined(chains[0].names);
  }

  Options o_;
  std::optional<Prose> prose_;
};

void enrol(Registry& r) {
  r.add<RecallTask, VariableTracking>(
      "variable_tracking", "RULER: chains of assignments in noise, followed to their end",
      "ruler-2024");
}

}  // namespace mneme::tasks::variable_tracking
