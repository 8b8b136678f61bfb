#include "bench/answers/summary.h"

#include "mneme/memory/choice.h"

#include "bench/statistics/bootstrap.h"
#include <algorithm>
#include <fmt/format.h>
#include <functional>
#include <numeric>
#include <string_view>

namespace mneme::bench {
namespace {

using nlohmann::json;

constexpr int kDepths[] = {1, 3, 5, 10};
constexpr double kGood =
    0.5;  // F1 from which an answer counts as right enough to look at its citations

std::string percent(const Estimate& e) {
  return fmt::format("{:.1f} [{:.1f}, {:.1f}]", 100 * e.value, 100 * e.low, 100 * e.high);
}
std::string plain(const Estimate& e) {
  return fmt::format("{:.3f} [{:.3f}, {:.3f}]", e.value, e.low, e.high);
}

json figure(const Estimate& e) { return {{"value", e.value}, {"low", e.low}, {"high", e.high}}; }

double mean_of(const std::vector<double>& x) {
  return x.empty() ? 0 : std::accumulate(x.begin(), x.end(), 0.0) / static_cast<double>(x.size());
}

double share_below(const std::vector<double>& x, double threshold) {
  if (x.empty()) return 0;
  return static_cast<double>(
             std::count_if(x.begin(), x.end(), [&](double v) { return v < threshold; })) /
         static_cast<double>(x.size());
}

std::vector<double> relevance_of(const std::vector<Evidence>& evidence) {
  std::vector<double> out;
  for (const auto& e : evidence) out.push_back(e.relevance);
  return out;
}

double quantile(std::vector<double> x, double q) {
  if (x.empty()) return 0;
  std::sort(x.begin(), x.end());
  return x[std::min(x.size() - 1, static_cast<std::size_t>(q * static_cast<double>(x.size())))];
}

/// The chance that an answerable question is more relevant than a stranger's.
double area_under_curve(const std::vector<double>& yes, std::vector<double> no) {
  if (yes.empty() || no.empty()) return 0;
  std::sort(no.begin(), no.end());
  double wins = 0;
  for (const auto x : yes) {
    const auto [below, upto] = std::equal_range(no.begin(), no.end(), x);
    wins += static_cast<double>(below - no.begin()) + 0.5 * static_cast<double>(upto - below);
  }
  return wins / (static_cast<double>(yes.size()) * static_cast<double>(no.size()));
}

class Summary {
 public:
  explicit Summary(const Findings& f) : f_(f), bootstrap_(f.set.questions.size()) {}

  SuiteReport report() {
    heading();
    recall();
    answers();
    citations();
    refusal();
    if (f_.set.split != "final") tuning();
    bars();
    return {std::move(json_), std::move(text_), passed_};
  }

 private:
  struct Bar {
    std::string name;
    Estimate value;
    std::string wanted;
    bool met;
  };

  template <class... Args>
  void line(fmt::format_string<Args...> format, Args&&... args) {
    text_ += fmt::format(format, std::forward<Args>(args)...) + "\n";
  }

  void at_least(const std::string& name, const Estimate& value, double bar) {
    bars_.push_back({name, value, fmt::format("at least {:g}", bar), value.value >= bar});
  }
  void at_most(const std::string& name, const Estimate& value, double bar) {
    bars_.push_back({name, value, fmt::format("at most {:g}", bar), value.value <= bar});
  }

  [[nodiscard]] bool has(std::string_view variant) const {
    return std::any_of(f_.variants.begin(), f_.variants.end(),
                       [&](const Variant& v) { return v.name == variant; });
  }
  /// One number of every question's row.
  [[nodiscard]] std::vector<double> column(std::string_view variant, const char* key) const {
    std::vector<double> out;
    for (const auto& question : f_.set.questions)
      out.push_back(f_.rows.row(variant, question.id).at(key).get<double>());
    return out;
  }

  void heading() {
    json_ = {{"suite", "answers"},
             {"split", f_.set.split},
             {"questions", f_.set.questions.size()},
             {"threshold", f_.prompt.not_found_below},
             {"confidence wanted", f_.prompt.refused_below}};
    line(
        "SQuAD v1.1 dev, {} questions on {} articles ({} split). Brackets: 95 % bootstrap "
        "intervals over questions, paired.",
        f_.set.questions.size(), f_.set.asked.size(), f_.set.split);
  }

  void recall() {
    line("\n## Recall of the gold paragraph\n");
    line(
        "| memory | passages | questions | @1 | @3 | @5 | @10 | with all other questions, @1 @3 @5 "
        "@10 |");
    line("|---|--:|--:|---|---|---|---|---|");
    for (const auto* memory : {&f_.small, &f_.large}) {
      std::string cells, rest;
      json figures{{"passages", memory->passages}, {"tokens", memory->tokens}};
      for (const int depth : kDepths) {
        const auto found = [&](const Retrieval& r) {
          return r.gold_rank > 0 && r.gold_rank <= depth ? 1.0 : 0.0;
        };
        std::vector<double> hits;
        for (const auto& r : memory->questions) hits.push_back(found(r));
        const auto estimate = bootstrap_.mean(hits);
        cells += fmt::format(" {} |", plain(estimate));
        figures[fmt::format("recall@{}", depth)] = figure(estimate);
        if (!memory->others.empty()) {
          for (const auto& r : memory->others) hits.push_back(found(r));
          rest += fmt::format(" {:.3f}", mean_of(hits));
          figures[fmt::format("recall@{} with all other questions", depth)] = mean_of(hits);
        }
        if (depth == 5)
          at_least(fmt::format("recall@5, {}", memory->memory), estimate,
                   memory == &f_.small ? 0.955 : 0.94);
      }
      if (!rest.empty())
        rest += fmt::format(" (n {})", memory->questions.size() + memory->others.size());
      line("| {} | {} | {} |{}{} |", memory->memory, memory->passages, memory->questions.size(),
           cells, rest);
      json_["recall"][memory->memory] = std::move(figures);
    }
  }

  void ratio(const std::string& name, std::string_view above, std::string_view below,
             std::optional<double> bar, bool strictly = false) {
    if (!has(above) || !has(below)) return;
    const auto estimate = bootstrap_.ratio(column(above, "f1"), column(below, "f1"));
    line("| {} | {} |", name, plain(estimate));
    json_["ratios"][name] = figure(estimate);
    if (bar && strictly) {
      bars_.push_back({name, estimate, fmt::format("above {:g}", *bar), estimate.value > *bar});
    } else if (bar) {
      at_least(name, estimate, *bar);
    }
  }

  void equal(const std::string& name, const std::vector<double>& same, std::optional<double> bar) {
    const auto estimate = bootstrap_.mean(same);
    line("| {} | {} |", name, plain(estimate));
    json_["equal answers"][name] = figure(estimate);
    if (bar) at_least(name, estimate, *bar);
  }

  [[nodiscard]] std::vector<double> same_answers(std::string_view a, std::string_view b) const {
    std::vector<double> out;
    for (const auto& q : f_.set.questions)
      out.push_back(f_.rows.row(a, q.id).at("answer") == f_.rows.row(b, q.id).at("answer") ? 1 : 0);
    return out;
  }

  /// What states take where they are stored, beside what is answered from them.
  void kept_bytes() {
    line("\n| states kept as | bytes a token | F1 | less than by the first |");
    line("|---|--:|---|---|");
    std::vector<double> first;
    for (const auto& v : f_.variants) {
      if (v.how != Variant::How::apart) continue;
      std::vector<double> bytes;
      for (const auto& question : f_.set.questions) {
        const auto& row = f_.rows.row(v.name, question.id);
        const auto value = row.find("state_bytes_a_token");  // rows of an older run have none
        if (value != row.end() && value->is_number()) bytes.push_back(value->get<double>());
      }
      if (bytes.empty()) continue;
      const auto mean =
          std::accumulate(bytes.begin(), bytes.end(), 0.0) / static_cast<double>(bytes.size());
      const auto f1 = column(v.name, "f1");
      if (first.empty()) first = f1;
      auto less = first;
      for (std::size_t i = 0; i < less.size(); ++i) less[i] -= f1[i];
      const auto own = bootstrap_.mean(f1), lost = bootstrap_.mean(less);
      line("| {} | {:.0f} | {} | {} |", v.name, mean, percent(own), percent(lost));
      json_["kept"][std::string(v.name)] = {
          {"bytes a token", mean}, {"f1", figure(own)}, {"less", figure(lost)}};
    }
  }

  void answers() {
    line("\n## Answers\n");
    line("| way | | n | EM | F1 | contains |");
    line("|---|---|--:|---|---|---|");
    const auto row = [&](std::string_view name, std::string_view help,
                         const std::vector<double>& em, const std::vector<double>& f1,
                         const std::vector<double>& contains) {
      const auto e = bootstrap_.mean(em), f = bootstrap_.mean(f1), c = bootstrap_.mean(contains);
      line("| {} | {} | {} | {} | {} | {} |", name, help, f1.size(), percent(e), percent(f),
           percent(c));
      json_["answers"][std::string(name)] = {
          {"em", figure(e)}, {"f1", figure(f)}, {"contains", figure(c)}};
    };
    for (const auto& v : f_.variants)
      row(v.name, v.help, column(v.name, "em"), column(v.name, "f1"), column(v.name, "contains"));
    for (const auto& v : f_.variants) {
      if (v.how != Variant::How::ask_each && v.how != Variant::How::ask_together) continue;
      auto em = column(v.name, "em"), f1 = column(v.name, "f1"),
           contains = column(v.name, "contains");
      for (std::size_t i = 0; i < f1.size(); ++i) {
        const auto& asked = f_.rows.row(v.name, f_.set.questions[i].id);
        if (refused({asked.at("relevance"), asked.at("confidence").get<double>()}))
          em[i] = f1[i] = contains[i] = 0;
      }
      row(fmt::format("{}, refusing", v.name), "the same without --always", em, f1, contains);
    }
    kept_bytes();
    std::vector<double> peer_f1;
    if (f_.peer) {
      std::vector<double> em, contains;
      for (const auto& q : f_.set.questions) {
        const auto found = f_.peer->find(q.id);
        const auto scores = scored(found == f_.peer->end() ? "" : found->second, q);
        em.push_back(scores.at("em").get<double>());
        peer_f1.push_back(scores.at("f1").get<double>());
        contains.push_back(scores.at("contains").get<double>());
      }
      row("peer", "another engine on the gold paragraphs", em, peer_f1, contains);
    }
    line("\n| ratio of F1 | |");
    line("|---|---|");
    ratio("each / gold paragraph", "ask-each", "gold", 0.88);
    ratio("each / joint, 3 spans", "ask-each", "joint", 1.0, true);
    ratio("together / joint, 3 spans", "ask-together", "joint", 0.95);
    ratio("together, 4 bits / joint, 3 spans", "together-q4", "joint", 0.92);
    ratio("together, uncoded / joint, 3 spans", "together-f16", "joint", {});
    ratio("together, 4 bits / together, uncoded", "together-q4", "together-f16", {});
    ratio("top 2 placed / top 3 placed", "top2", "together", {});
    ratio("top 1 placed / each", "top1", "ask-each", {});
    if (f_.peer && has("gold")) {
      const auto estimate = bootstrap_.ratio(column("gold", "f1"), peer_f1);
      line("| gold paragraph / peer | {} |", plain(estimate));
      json_["ratios"]["gold paragraph / peer"] = figure(estimate);
      at_least("gold paragraph / peer", estimate, 0.97);
    }
    line("\n| share of equal answers | |");
    line("|---|---|");
    if (has("together") && has("together-f16"))
      equal("8 bits and uncoded, together", same_answers("together", "together-f16"), 0.97);
    if (has("together-q4") && has("together-f16"))
      equal("4 bits and uncoded, together", same_answers("together-q4", "together-f16"), {});
    if (has("each") && has("each-f16")) {
      std::vector<double> same;
      for (const auto& q : f_.set.questions) {
        const auto& uncoded = f_.rows.row("each-f16", q.id);
        const auto& coded = f_.rows.row("each", q.id);
        const auto answers = coded.value("answers", json::array({coded.at("answer")}));
        const auto expected = uncoded.value("answers", json::array({uncoded.at("answer")}));
        double equal = 0;
        for (std::size_t i = 0; i < answers.size(); ++i) equal += answers[i] == expected[i] ? 1 : 0;
        same.push_back(equal / static_cast<double>(answers.size()));
      }
      equal("8 bits and uncoded, each span's answer", same, 0.97);
      equal("8 bits and uncoded, each, the chosen answer", same_answers("each", "each-f16"), {});
    }
    // States of a memory were computed in other batches than the reader's: on a fast path they round differently.
    if (has("ask-each") && has("each"))
      equal("ask --place each and the reader alone", same_answers("ask-each", "each"), {});
    if (has("ask-together") && has("together"))
      equal("ask --place together and the reader alone", same_answers("ask-together", "together"),
            {});
    if (f_.peer && has("gold")) {
      std::vector<double> same;
      for (const auto& q : f_.set.questions) {
        const auto found = f_.peer->find(q.id);
        same.push_back(
            found != f_.peer->end() && f_.rows.row("gold", q.id).at("answer") == found->second ? 1
                                                                                               : 0);
      }
      equal("gold paragraph and peer", same, {});
    }
  }

  void citations() {
    std::int64_t outside = 0, wrong_marks = 0, cited = 0, unquoted = 0;
    line("\n## Citations\n");
    for (const std::string_view variant : {"ask-each", "ask-together"}) {
      if (!has(variant)) continue;
      std::vector<double> good, first_gold, first_holds, quoted_good;
      for (const auto& q : f_.set.questions) {
        const auto& row = f_.rows.row(variant, q.id);
        const auto& list = row.at("citations");
        const bool is_good = row.at("f1").get<double>() >= kGood;
        good.push_back(is_good ? 1 : 0);
        first_gold.push_back(is_good && !list.empty() && list[0].value("gold", false) ? 1 : 0);
        first_holds.push_back(is_good && !list.empty() && list[0].value("holds_gold", false) ? 1
                                                                                             : 0);
        const bool quotation = row.at("quotation").get<bool>();
        if (row.at("found").get<bool>() && !quotation) ++unquoted;
        for (const auto& citation : list) {
          ++cited;
          outside += citation.at("inside").get<bool>() ? 0 : 1;
          const bool holds = citation.value("holds_answer", false);
          // A range without the answer's words is allowed only where the answer is marked as not a quotation.
          wrong_marks += holds != citation.at("marked").get<bool>() || (quotation && !holds) ||
                                 (!quotation && holds)
                             ? 1
                             : 0;
        }
      }
      const auto gold = bootstrap_.ratio(first_gold, good),
                 holds = bootstrap_.ratio(first_holds, good);
      const auto n = std::accumulate(good.begin(), good.end(), 0.0);
      line(
          "- {}: {:.0f} answers with F1 >= {:g}; the first citation is the gold paragraph in {} %, "
          "holds a gold answer in {} %.",
          variant, n, kGood, percent(gold), percent(holds));
      json_["citations"][std::string(variant)] = {{"good answers", n},
                                                  {"first is gold", figure(gold)},
                                                  {"first holds a gold answer", figure(holds)}};
      if (variant == "ask-each") {
        at_least("first citation is the gold paragraph", gold, 0.88);
        at_least("first citation holds a gold answer", holds, 0.95);
      }
    }
    if (cited == 0) return;
    line(
        "- {} citations in all: {} outside the text or not verbatim, {} whose mark is wrong; {} "
        "answers marked as not a quotation.",
        cited, outside, wrong_marks, unquoted);
    json_["citations"]["all"] = cited;
    json_["citations"]["outside the text"] = outside;
    json_["citations"]["wrong marks"] = wrong_marks;
    json_["citations"]["answers marked as not a quotation"] = unquoted;
    const auto count = [](std::int64_t n) {
      return Estimate{static_cast<double>(n), static_cast<double>(n), static_cast<double>(n)};
    };
    at_most("citations outside the text", count(outside), 0);
    at_most("cited ranges without the answer's words, unmarked", count(wrong_marks), 0);
  }

  void refusal() {
    const auto& prompt = f_.prompt;
    const bool reads = !prompt.refusal.empty();
    line("\n## Refusal below a relevance of {:.3f}{}\n", prompt.not_found_below,
         reads ? fmt::format(" or a confidence of {:.3f}", prompt.refused_below) : "");
    line(
        "| memory | passages | by | answerable refused | strangers refused | SQuAD v2's "
        "unanswerable refused | AUC of relevance |");
    line("|---|--:|---|---|---|---|--:|");
    for (const auto* memory : {&f_.small_refusal, &f_.unseen_refusal, &f_.large_refusal}) {
      if (memory->strangers.empty()) continue;
      const auto auc =
          area_under_curve(relevance_of(memory->answerable), relevance_of(memory->strangers));
      json figures{
          {"passages", memory->passages}, {"strangers", memory->strangers_are}, {"auc", auc}};
      const auto relevant = shares_refused(*memory, false);
      refusal_row(*memory, "relevance", relevant, auc);
      figures["by relevance"] = figures_of(relevant);
      const bool read = memory->answerable.front().confidence.has_value();
      const auto decided = read ? shares_refused(*memory, true) : relevant;
      if (read) refusal_row(*memory, "relevance, or the answer read", decided, auc);
      figures.update(figures_of(decided));
      json_["refusal"][memory->memory] = std::move(figures);
      at_least("strangers refused, " + memory->memory, decided.strangers,
               memory == &f_.large_refusal ? 0.83 : 0.92);
      at_most("answerable refused, " + memory->memory, decided.answerable, 0.05);
    }
  }

  struct Refused {
    Estimate answerable, strangers;
    std::optional<Estimate> unanswerable;
  };

  static json figures_of(const Refused& shares) {
    json out{{"answerable refused", figure(shares.answerable)},
             {"strangers refused", figure(shares.strangers)}};
    if (shares.unanswerable) out["unanswerable refused"] = figure(*shares.unanswerable);
    return out;
  }

  /// As `mneme ask` decides: by relevance before anything is read, then by the confidence in what was read.
  [[nodiscard]] bool refused(const Evidence& e) const {
    const bool weak =
        !f_.prompt.refusal.empty() && e.confidence && *e.confidence < f_.prompt.refused_below;
    return weak || e.relevance < f_.prompt.not_found_below;
  }
  [[nodiscard]] Refused shares_refused(const RefusalFindings& memory, bool read) const {
    const auto share = [&](const std::vector<Evidence>& evidence) {
      std::vector<double> out;
      for (const auto& e : evidence)
        out.push_back(refused(read ? e : Evidence{e.relevance}) ? 1 : 0);
      return Bootstrap(out.size()).mean(out);
    };
    Refused out{share(memory.answerable), share(memory.strangers), {}};
    if (!memory.unanswerable.empty()) out.unanswerable = share(memory.unanswerable);
    return out;
  }

  void refusal_row(const RefusalFindings& memory, std::string_view by, const Refused& shares,
                   double auc) {
    line("| {} | {} | {} | {} (n {}) | {} (n {}, {}) | {} | {:.3f} |", memory.memory,
         memory.passages, by, percent(shares.answerable), memory.answerable.size(),
         percent(shares.strangers), memory.strangers.size(), memory.strangers_are,
         shares.unanswerable
             ? fmt::format("{} (n {})", percent(*shares.unanswerable), memory.unanswerable.size())
             : "",
         auc);
  }

  /// What defaults can be set by; of no use in a final report.
  void tuning() {
    line("\n## For setting the threshold\n");
    for (const auto* memory : {&f_.small_refusal, &f_.large_refusal}) {
      if (memory->strangers.empty()) continue;
      line("{}, {} passages, {} answerable, {} strangers ({}):\n", memory->memory, memory->passages,
           memory->answerable.size(), memory->strangers.size(), memory->strangers_are);
      line("| threshold | answerable refused | strangers refused |");
      line("|--:|--:|--:|");
      std::vector<double> thresholds;
      const auto answerable = relevance_of(memory->answerable),
                 strangers = relevance_of(memory->strangers);
      for (const double lost : {0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1})
        thresholds.push_back(quantile(answerable, lost));
      for (double t = 0.7; t < 1.101; t += 0.025) thresholds.push_back(t);
      std::sort(thresholds.begin(), thresholds.end());
      for (const auto t : thresholds)
        line("| {:.3f} | {:.1f} % | {:.1f} % |", t, 100 * share_below(answerable, t),
             100 * share_below(strangers, t));
      line("");
    }
    if (!has("ask-each")) return;
    line(
        "\n## For setting the choice among answers read apart: log-probability + weight * "
        "retrieval score\n");
    line("| weight | F1 | first citation gold, of good answers |");
    line("|--:|--:|--:|");
    const auto choose = [&](const std::string& name,
                            const std::function<std::size_t(const json&)>& pick) {
      double f1 = 0, good = 0, gold = 0;
      for (const auto& q : f_.set.questions) {
        const auto& read = f_.rows.row("ask-each", q.id).at("read");
        if (read.empty()) continue;
        const auto& row = read[pick(read)];
        f1 += row.at("f1").get<double>();
        if (row.at("f1").get<double>() < kGood) continue;
        good += 1;
        gold += row.at("gold").get<bool>() ? 1 : 0;
      }
      line("| {} | {:.1f} | {:.1f} |", name,
           100 * f1 / static_cast<double>(f_.set.questions.size()),
           good > 0 ? 100 * gold / good : 0);
    };
    for (const double weight : {0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0}) {
      choose(fmt::format("{:g}", weight), [&](const json& read) {
        std::vector<ReadAnswer> answers;
        for (const auto& row : read) {
          ReadAnswer answer;
          answer.text = row.at("answer");
          answer.mean_log_probability = row.at("log_probability");
          answer.refused = row.at("refused");
          answers.push_back(std::move(answer));
        }
        std::vector<memory::ScoredAnswer> scored;
        for (std::size_t i = 0; i < answers.size(); ++i)
          scored.push_back({&answers[i], read[i].at("score").get<double>()});
        auto prompt = f_.prompt;
        prompt.score_weight = weight;
        return memory::choose_answer(scored, 0, prompt).best;
      });
    }
    choose("the best of them", [](const json& read) {
      std::size_t best = 0;
      for (std::size_t i = 1; i < read.size(); ++i) {
        if (read[i].at("f1").get<double>() > read[best].at("f1").get<double>()) best = i;
      }
      return best;
    });
  }

  void bars() {
    line("\n## Bars\n");
    line("| what | value | wanted | |");
    line("|---|---|---|---|");
    json_["bars"] = json::array();
    for (const auto& bar : bars_) {
      line("| {} | {} | {} | {} |", bar.name, plain(bar.value), bar.wanted,
           bar.met ? "ok" : "FAIL");
      json_["bars"].push_back({{"name", bar.name},
                               {"value", figure(bar.value)},
                               {"wanted", bar.wanted},
                               {"ok", bar.met}});
      passed_ = passed_ && bar.met;
    }
    json_["passed"] = passed_;
  }

  const Findings& f_;
  Bootstrap bootstrap_;
  json json_;
  std::string text_;
  std::vector<Bar> bars_;
  bool passed_ = true;
};

}  // namespace

SuiteReport summarize(const Findings& findings) { return Summary(findings).report(); }

}  // namespace mneme::bench
