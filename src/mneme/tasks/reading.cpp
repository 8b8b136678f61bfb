// reading: short answers from passages whose states were computed apart, and "not found" where they
// hold none. A sequence is what a memory runs when it is asked, questions side by side.
//
//   segments   the prefix, the placed passages, then questions, each with its answer; before every
//              passage but the first a copy of the prefix
//   sees       a passage: the prefix before it;  a question: the first prefix and every passage;
//              always itself
//   positions  the passages one after another behind the prefix, as Reader::place turns them, a copy
//              of the prefix over the end of what stands before; every question starts right behind
//              the last passage
//   learned    the answer and the quotation mark that ends it
//
// A memory computes a passage right behind the prefix and turns its keys to where it is placed.
// Rotary attention knows distances only, so a copy of the prefix right before a placed passage gives
// it exactly the states that it has in memory; with one prefix for all, it would be further away.
//
// One example is drawn for every passage that answers a question: alone, or among those that
// retrieval takes it for. Its slots are filled until they or the placed passages' questions are used
// up; each is with probability `absent` a question that no placed passage answers, so that this is
// their share (the number of slots is a stopping time). Those are, as far as there are any:
// questions that their own paragraph does not answer (SQuAD v2), questions of other passages whose
// embeddings are near, and questions on other articles. A passage whose whole text is only asked in
// vain gives an example of such questions.
//
// spec      reading(data="squad", split=train, spans=3, questions=7, several=0.4, absent=0.25)
// needs     data sets (see reading_data.h); the embedder, where passages or questions are confused
// source    Rajpurkar et al. 2016, arXiv:1606.05250; 2018, arXiv:1806.03822 (questions without an
//           answer); Lamm et al. 2021, arXiv:2009.06354 (QED)
#include "mneme/core/error.h"
#include "mneme/core/log.h"
#include "mneme/core/registry.h"
#include "mneme/embed/sentence_encoder.h"
#include "mneme/memory/reader.h"
#include "mneme/models/locate.h"
#include "mneme/tasks/material.h"
#include "mneme/tasks/reading_data.h"
#include "mneme/tasks/squad.h"
#include "mneme/train/task.h"
#include "mneme/weights/digests.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <fmt/format.h>
#include <functional>
#include <limits>
#include <map>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace mneme::tasks::reading {
namespace {

constexpr std::string_view kNotFound = "not found";
// Of several passages the one that was drawn stands last, next to the question, as often as this:
// there `ask` puts what retrieval ranks first.
constexpr double kGoldLast = 0.6;
// How often a question without an answer is of each kind, where there is one: its own paragraph's,
// one of another passage that looks like it, one on something else.
constexpr std::array<double, 3> kAbsentKinds = {0.5, 0.35, 0.15};
// From how many of the nearest questions of other passages one is drawn.
constexpr std::size_t kNearest = 16;
// Draws of a question on something else before that kind is given up.
constexpr int kTries = 8;
// Questions of a passage in the first round of the validation list: states of passages are its cost.
constexpr std::size_t kRound = 4;
constexpr std::size_t kAnswerRows = 16;

Prompt reader_prompt() {
  Prompt out;
  out.prefix =
      "Short answers in the words of the passages, or \"not found\" where they do not say.\n\n";
  out.span_before = "Passage: ";
  out.span_after = "\n\n";
  out.question_before = "Question: ";
  out.question_after = "\nAnswer: \"";
  out.answer_ends_at = "\"";
  out.refusal = kNotFound;
  // Set on 300 answerable and 300 unanswerable questions of the articles held back, and 200 on others, with the reader
  // of SmolLM2: F1 65.0 from 3 spans (64.2 from 5; 68.0 and 70.0 if the best were known); at a cost of 2.3 % of
  // the answerable questions, 99 % of those on other topics are refused.
  out.spans_apart = 3;
  out.score_weight = 2;
  out.refusal_weight = 1;
  out.relevance_weight = 6;
  out.refused_below = 4.2;
  out.not_found_below = 0.67;
  return out;
}

/// A whole number in [0, n).
std::size_t below(Generator& draw, std::size_t n) {
  return std::min(n - 1, static_cast<std::size_t>(draw.uniform() * static_cast<double>(n)));
}

template <class T>
void shuffle(std::vector<T>& items, Generator& draw) {
  for (auto i = items.size(); i > 1; --i) std::swap(items[i - 1], items[below(draw, i)]);
}

bool contains(const std::vector<std::size_t>& list, std::size_t item) {
  return std::find(list.begin(), list.end(), item) != list.end();
}

/// Places of the `n` largest of `scores` for which `wanted`, the largest first, equal ones in order.
std::vector<std::size_t> largest(const at::Tensor& scores, std::size_t n,
                                 const std::function<bool(std::size_t)>& wanted) {
  const auto* score = scores.const_data_ptr<float>();
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < static_cast<std::size_t>(scores.numel()); ++i) {
    if (wanted(i)) order.push_back(i);
  }
  n = std::min(n, order.size());
  std::partial_sort(
      order.begin(), order.begin() + static_cast<std::ptrdiff_t>(n), order.end(),
      [&](auto a, auto b) { return score[a] != score[b] ? score[a] > score[b] : a < b; });
  order.resize(n);
  return order;
}

std::size_t place_in(const std::vector<std::size_t>& list, std::size_t item) {
  return static_cast<std::size_t>(std::find(list.begin(), list.end(), item) - list.begin());
}

}  // namespace

class Reading final : public Task {
 public:
  struct Options {
    std::string data = "squad", split = "train", embedder = "minilm";
    std::int64_t spans = 3, questions = 7;
    double several = 0.4, absent = 0.25;
  };
  static void describe(Describe& d, Options& o) {
    d("data", o.data, "squad, nq-qed, or files that end in .jsonl; several parted by +");
    d("split", o.split, one_of({"train", "tuning"}), "what to draw examples from");
    d("spans", o.spans, at_least(1), "most passages that are placed together");
    d("questions", o.questions, at_least(1), "most questions of an example");
    d("several", o.several, within(0, 1), "share of examples with more than one passage");
    d("absent", o.absent, within(0, 0.9), "share of questions that no placed passage answers");
    d("embedder", o.embedder, "finds what passages and questions are taken for");
  }

  Reading(const Options& o, const Setup& setup) : Reading(o, setup, read(o, setup)) {}

  [[nodiscard]] std::int64_t size() const override {
    return static_cast<std::int64_t>(drawn_.size());
  }

  [[nodiscard]] Example example(std::int64_t index, std::int64_t pass,
                                Generator& generator) const override {
    auto draw =
        generator.split(static_cast<std::uint64_t>(pass)).split(static_cast<std::uint64_t>(index));
    const auto gold = drawn_.at(static_cast<std::size_t>(index));
    auto own = material_.passages[gold].questions;
    shuffle(own, draw);
    std::vector<std::size_t> placed{gold};
    std::vector<std::pair<std::size_t, bool>> asked;  // and whether the placed passages answer it
    if (own.empty()) {
      auto unanswerable = material_.passages[gold].unanswerable;
      shuffle(unanswerable, draw);
      unanswerable.resize(std::min(unanswerable.size(), static_cast<std::size_t>(o_.questions)));
      for (const auto question : unanswerable) asked.emplace_back(question, false);
      return compose(placed, asked);
    }
    if (draw.uniform() < o_.several) place_others(own.front(), placed, draw);
    // The question that the others were found for comes first, then any of those placed.
    auto pool = own;
    for (const auto passage : placed) {
      if (passage == gold) continue;
      const auto& more = material_.passages[passage].questions;
      pool.insert(pool.end(), more.begin(), more.end());
    }
    std::vector<std::size_t> rest(pool.begin() + 1, pool.end());
    shuffle(rest, draw);
    std::copy(rest.begin(), rest.end(), pool.begin() + 1);

    std::size_t next = 0;
    for (std::int64_t slot = 0; slot < o_.questions && next < pool.size(); ++slot) {
      if (draw.uniform() < o_.absent) {
        if (const auto absent = draw_absent(placed, asked, draw)) {
          asked.emplace_back(*absent, false);
          continue;
        }
      }
      asked.emplace_back(pool[next++], true);
    }
    return compose(placed, asked);
  }

  [[nodiscard]] std::map<std::string, double> validate(const LanguageModel& model,
                                                       std::int64_t limit) const override {
    const auto first = [&](const std::vector<Asked>& list, std::int64_t n) {
      const auto take =
          limit > 0 ? std::min(static_cast<std::size_t>(n), list.size()) : list.size();
      return std::vector<Asked>(list.begin(), list.begin() + static_cast<std::ptrdiff_t>(take));
    };
    auto asked = first(answerable_, limit);
    const auto absent = first(absent_, (limit + 1) / 2);
    const auto answerable = static_cast<double>(asked.size());
    asked.insert(asked.end(), absent.begin(), absent.end());
    // Questions of a passage run together, whose state is computed once.
    std::stable_sort(asked.begin(), asked.end(),
                     [](const Asked& a, const Asked& b) { return a.passage < b.passage; });
    // The answer as the model gives it, a refusal included.
    auto prompt = reader_.prompt();
    prompt.refusal.clear();
    const Reader reader(borrowed(&model), prompt, Chain{});
    double f1 = 0, em = 0, refused = 0, refused_absent = 0;
    std::map<std::size_t, SpanState> states;
    for (std::size_t begin = 0; begin < asked.size(); begin += kAnswerRows) {
      between_();
      const auto some =
          std::span(asked).subspan(begin, std::min(kAnswerRows, asked.size() - begin));
      compute_states(reader, some, states);
      std::vector<State> rows;
      std::vector<std::string> texts;
      for (const auto& one : some) {
        rows.push_back(reader.prefix());
        reader.place(rows.back(), states.at(one.passage));
        texts.push_back(held_back_.questions[one.question].text);
      }
      const auto answers = reader.answer(std::move(rows), texts, reader.prompt().max_tokens).rows;
      for (std::size_t i = 0; i < some.size(); ++i) {
        const auto& golds = held_back_.questions[some[i].question].answers;
        const auto said = normalised(answers[i].text);
        const double refuses = said.empty() || said == kNotFound ? 1 : 0;
        if (some[i].absent) {
          refused_absent += refuses;
        } else {
          refused += refuses;
          f1 += word_f1(answers[i].text, golds);
          em += exact_match(answers[i].text, golds);
        }
      }
    }
    std::map<std::string, double> out;
    if (answerable > 0) {
      out = {{"f1", f1 / answerable},
             {"em", em / answerable},
             {"refused_answerable", refused / answerable}};
    }
    if (!absent.empty())
      out["refused_absent"] = refused_absent / static_cast<double>(absent.size());
    return out;
  }

  [[nodiscard]] std::string digest() const override { return digest_; }

  [[nodiscard]] std::map<std::string, std::string> notes() const override {
    return {{"prompt", reader_.prompt().to_json()}};
  }

 private:
  /// What is read before the model is asked for.
  struct Data {
    ReadingData drawn, held_back;
  };

  static Data read(const Options& o, const Setup& setup) {
    if (confuses(o)) static_cast<void>(locate_model(o.embedder));
    // A file in place of the folder of data sets is a user's own questions.
    const bool own = std::filesystem::is_regular_file(setup.data);
    const auto load = [&](Split split) {
      return own ? own_reading(setup.data, split) : reading_data(o.data, setup.data, split);
    };
    return {load(o.split == "train" ? Split::train : Split::tuning), load(Split::tuning)};
  }

  Reading(const Options& o, const Setup& setup, Data data)
      : o_(o),
        between_(setup.between),
        model_(setup.model()),
        reader_(borrowed(model_), reader_prompt(), Chain{}),
        prefix_(model_->tokenizer->encode(reader_.prompt().prefix)),
        end_(model_->tokenizer->encode(reader_.prompt().answer_ends_at)),
        not_found_(model_->tokenizer->encode(kNotFound)),
        material_(material_of(data.drawn, reader_)),
        held_back_(material_of(data.held_back, reader_)) {
    list_same();
    list_drawn();
    list_held_back();
    Sha256 digest;
    digest.update(std::as_bytes(std::span<const std::int32_t>(prefix_)));
    if (confuses(o_)) {
      const auto encoder = SentenceEncoder::load(o_.embedder);
      embed(material_, *encoder, between_);
      digest.update(encoder->digest());
    }
    add_to(digest, material_);
    add_to(digest, held_back_);
    digest_ = digest.hex();
  }

  /// Whether passages or questions are taken for others, which is what the embedder is for.
  static bool confuses(const Options& o) { return o.several > 0 || o.absent > 0; }

  /// A question of the validation list and the passage that it is asked of.
  struct Asked {
    std::size_t question = 0, passage = 0;
    bool absent = false;
  };

  /// A task lives no longer than its model.
  static std::shared_ptr<const LanguageModel> borrowed(const LanguageModel* model) {
    MNEME_ASSERT(model != nullptr);
    return {std::shared_ptr<const LanguageModel>(), model};
  }

  [[nodiscard]] bool fits(std::size_t tokens) const {
    return static_cast<std::int64_t>(tokens) <= reader_.room();
  }

  /// Puts the passages that retrieval ranks next for the question around the one that answers it.
  void place_others(std::size_t question, std::vector<std::size_t>& placed, Generator& draw) const {
    const auto gold = placed.front();
    const auto& source = material_.sources[material_.passages[gold].source];
    const auto n =
        o_.spans > 2 ? 1 + below(draw, static_cast<std::size_t>(o_.spans - 1)) : std::size_t{1};
    if (o_.spans < 2) return;
    const auto scores = at::mv(
        source.passage_vectors,
        source.question_vectors[static_cast<std::int64_t>(place_in(source.questions, question))]);
    auto tokens = material_.passages[gold].ids.size();
    std::vector<std::size_t> others;
    for (const auto i : largest(scores, n, [&](auto i) { return source.passages[i] != gold; })) {
      tokens += material_.passages[source.passages[i]].ids.size();
      if (!fits(tokens)) break;
      others.push_back(source.passages[i]);
    }
    std::reverse(others.begin(), others.end());  // the better, the nearer to the question
    const auto at =
        others.empty() || draw.uniform() < kGoldLast ? others.size() : below(draw, others.size());
    others.insert(others.begin() + static_cast<std::ptrdiff_t>(at), gold);
    placed = std::move(others);
  }

  /// Whether no placed passage may be taken to answer a question that is on another one.
  [[nodiscard]] bool is_absent(const PassageQuestion& question,
                               const std::vector<std::size_t>& placed) const {
    return std::none_of(placed.begin(), placed.end(), [&](auto passage) {
      return contains(question.parts, passage) ||
             std::any_of(question.answers.begin(), question.answers.end(), [&](const auto& answer) {
               return holds_answer(material_.passages[passage].text, answer);
             });
    });
  }

  /// Whether the same question, word for word, has an answer on a placed passage: its own paragraph
  /// does not answer it, but another one that is placed may.
  [[nodiscard]] bool answered_elsewhere(std::size_t question,
                                        const std::vector<std::size_t>& placed) const {
    const auto found = same_answerable_.find(question);
    if (found == same_answerable_.end()) return false;
    return std::any_of(found->second.begin(), found->second.end(), [&](auto same) {
      const auto& parts = material_.questions[same].parts;
      return std::any_of(parts.begin(), parts.end(),
                         [&](auto part) { return contains(placed, part); });
    });
  }

  /// A question that the placed passages do not answer and that is not asked yet, of a kind that is
  /// drawn, or of the next one that there is.
  [[nodiscard]] std::optional<std::size_t> draw_absent(
      const std::vector<std::size_t>& placed,
      const std::vector<std::pair<std::size_t, bool>>& asked, Generator& draw) const {
    const auto fresh = [&](std::size_t question) {
      return std::none_of(asked.begin(), asked.end(),
                          [&](const auto& a) { return a.first == question; });
    };
    auto at = draw.uniform();
    std::size_t kind = 0;
    while (kind + 1 < kAbsentKinds.size() && at >= kAbsentKinds[kind]) at -= kAbsentKinds[kind++];
    for (std::size_t i = 0; i < kAbsentKinds.size(); ++i) {
      const auto found = of_kind((kind + i) % kAbsentKinds.size(), placed, fresh, draw);
      if (found) return found;
    }
    return std::nullopt;
  }

  [[nodiscard]] std::optional<std::size_t> of_kind(std::size_t kind,
                                                   const std::vector<std::size_t>& placed,
                                                   const std::function<bool(std::size_t)>& fresh,
                                                   Generator& draw) const {
    const auto usable = [&](std::size_t question) {
      return fresh(question) && is_absent(material_.questions[question], placed);
    };
    if (kind == 2) {
      const auto& from = material_.answerable;
      for (int i = 0; i < kTries; ++i) {
        const auto question = from[below(draw, from.size())];
        const auto source = material_.passages[material_.questions[question].passage].source;
        const bool other =
            material_.sources.size() == 1 || source != material_.passages[placed.front()].source;
        if (other && usable(question)) return question;
      }
      return std::nullopt;
    }
    std::vector<std::size_t> some;
    if (kind == 0) {
      for (const auto passage : placed) {
        for (const auto question : material_.passages[passage].unanswerable) {
          if (fresh(question) && !answered_elsewhere(question, placed)) some.push_back(question);
        }
      }
    } else {
      const auto passage = placed[below(draw, placed.size())];
      const auto& source = material_.sources[material_.passages[passage].source];
      const auto scores = at::mv(
          source.question_vectors,
          source.passage_vectors[static_cast<std::int64_t>(place_in(source.passages, passage))]);
      const auto near = largest(scores, kNearest, [&](auto i) {
        return !contains(material_.questions[source.questions[i]].parts, passage);
      });
      for (const auto i : near) {
        if (usable(source.questions[i])) some.push_back(source.questions[i]);
      }
    }
    if (some.empty()) return std::nullopt;
    return some[below(draw, some.size())];
  }

  [[nodiscard]] Example compose(const std::vector<std::size_t>& placed,
                                const std::vector<std::pair<std::size_t, bool>>& asked) const {
    Example out;
    std::int64_t position = 0;
    const auto put = [&](std::span<const std::int32_t> ids, float weight) {
      const auto segment = static_cast<std::int32_t>(out.sees.size()) - 1;
      for (const auto id : ids) {
        out.ids.push_back(id);
        out.positions.push_back(position++);
        out.segments.push_back(segment);
        out.weights.push_back(weight);
      }
    };
    std::vector<std::int32_t> all{0};  // that a question sees
    for (const auto passage : placed) {
      if (!out.sees.empty()) position -= static_cast<std::int64_t>(prefix_.size());
      const auto prefix = static_cast<std::int32_t>(out.sees.size());
      out.sees.emplace_back();
      put(prefix_, 0);
      out.sees.push_back({prefix});
      put(material_.passages[passage].ids, 0);
      all.push_back(prefix + 1);
    }
    const auto behind = position;
    for (const auto& [index, found] : asked) {
      const auto& question = material_.questions[index];
      position = behind;
      out.sees.push_back(all);
      put(question.ids, 0);
      out.weights.back() = 1;  // what follows the question is the answer's first token
      put(found ? question.answer : not_found_, 1);
      put(end_, 0);
    }
    return out;
  }

  /// The questions that some paragraph answers though their own does not.
  void list_same() {
    std::map<std::string, std::vector<std::size_t>> by_text;
    for (const auto i : material_.answerable)
      by_text[normalised(material_.questions[i].text)].push_back(i);
    for (std::size_t i = 0; i < material_.questions.size(); ++i) {
      if (!material_.questions[i].answers.empty()) continue;
      const auto found = by_text.find(normalised(material_.questions[i].text));
      if (found != by_text.end()) same_answerable_.emplace(i, found->second);
    }
  }

  /// The passages that examples are drawn for: those that are asked about and that the model has
  /// room for.
  void list_drawn() {
    std::size_t left_out = 0;
    auto shortest = std::numeric_limits<std::size_t>::max();
    for (std::size_t i = 0; i < material_.passages.size(); ++i) {
      const auto& passage = material_.passages[i];
      const bool asked =
          !passage.questions.empty() || (passage.in_vain && !passage.unanswerable.empty());
      if (!asked) continue;
      shortest = std::min(shortest, passage.ids.size());
      if (fits(passage.ids.size())) {
        drawn_.push_back(i);
      } else {
        ++left_out;
      }
    }
    const auto context = model_->model->shape().context;
    if (drawn_.empty() && left_out > 0) {
      throw Error(
          Errc::invalid,
          fmt::format("{}: its context of {} tokens is too short to learn reading: with the "
                      "prompt, a question and an answer it leaves {} for a passage, and the "
                      "shortest takes {}",
                      model_->name, context, reader_.room(), shortest));
    }
    if (drawn_.empty() && material_.too_long > 0) {
      throw Error(
          Errc::invalid,
          fmt::format("reading: there is nothing to learn from: no question has an answer of "
                      "at most {} tokens that stands whole in a passage; {} have longer ones",
                      reader_.prompt().max_tokens, material_.too_long));
    }
    if (drawn_.empty()) {
      throw Error(Errc::invalid,
                  "reading: there is nothing to learn from: no question has an answer that stands "
                  "whole in a passage, or is without one");
    }
    if (left_out > 0) {
      log::warn(
          "{} of {} passages that are asked about are left out: the context of {} ({} tokens) "
          "leaves {} for a passage",
          left_out, left_out + drawn_.size(), model_->name, context, reader_.room());
    }
  }

  void list_held_back() {
    const auto& passages = held_back_.passages;
    std::vector<std::size_t> order(passages.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::vector<std::string> digests;
    for (const auto& passage : passages) digests.push_back(sha256_hex(passage.text));
    std::sort(order.begin(), order.end(), [&](auto a, auto b) { return digests[a] < digests[b]; });
    std::vector<std::vector<std::size_t>> questions_of(passages.size());
    for (const auto question : held_back_.answerable) {
      questions_of[held_back_.questions[question].passage].push_back(question);
    }
    std::erase_if(order, [&](auto passage) { return !fits(passages[passage].ids.size()); });
    const auto add_in_rounds = [&](std::size_t round, bool absent, const auto& of,
                                   std::vector<Asked>& list) {
      bool more = true;
      for (std::size_t from = 0; more; from += round) {
        more = false;
        for (const auto passage : order) {
          const auto& questions = of(passage);
          for (auto i = from; i < std::min(questions.size(), from + round); ++i) {
            list.push_back({questions[i], passage, absent});
            more = true;
          }
        }
      }
    };
    add_in_rounds(
        kRound, false, [&](auto passage) -> const auto& { return questions_of[passage]; },
        answerable_);
    // Half as many in a round, so that they are on the passages of the questions before them.
    add_in_rounds(
        kRound / 2, true,
        [&](auto passage) -> const auto& { return passages[passage].unanswerable; }, absent_);
    if (answerable_.empty() && absent_.empty()) {
      log::warn("nothing is held back to validate on: questions on more passages would be");
    }
    if (!absent_.empty()) return;
    // Data without such questions: those of other passages, whose words it does not hold.
    for (std::size_t i = 0; i + 1 < order.size(); ++i) {
      for (const auto question : questions_of[order[i + 1]]) {
        const auto& answers = held_back_.questions[question].answers;
        const bool held = contains(held_back_.questions[question].parts, order[i]) ||
                          std::any_of(answers.begin(), answers.end(), [&](const auto& answer) {
                            return holds_answer(passages[order[i]].text, answer);
                          });
        if (!held) absent_.push_back({question, order[i], true});
      }
    }
  }

  /// The states of the passages that `asked` are on; what is there already stays, the rest goes.
  void compute_states(const Reader& reader, std::span<const Asked> asked,
                      std::map<std::size_t, SpanState>& states) const {
    std::map<std::size_t, SpanState> out;
    std::vector<std::size_t> missing;
    std::vector<std::vector<std::int32_t>> ids;
    for (const auto& one : asked) {
      if (out.contains(one.passage) || contains(missing, one.passage)) continue;
      if (const auto found = states.find(one.passage); found != states.end()) {
        out[one.passage] = std::move(found->second);
      } else {
        missing.push_back(one.passage);
        ids.push_back(held_back_.passages[one.passage].ids);
      }
    }
    const auto bytes = reader.compute(ids);
    for (std::size_t i = 0; i < missing.size(); ++i) {
      out[missing[i]] =
          reader.decode(bytes[i], static_cast<std::int64_t>(ids[i].size()), reader.codec());
    }
    states = std::move(out);
  }

  Options o_;
  std::function<void()> between_;
  const LanguageModel* model_;
  Reader reader_;  // for its prompt and its ids; states are the model's of the moment
  std::vector<std::int32_t> prefix_, end_, not_found_;
  Material material_, held_back_;
  // By unanswerable question: the answerable ones of the same words.
  std::map<std::size_t, std::vector<std::size_t>> same_answerable_;
  std::vector<std::size_t> drawn_;          // passages, an example each
  std::vector<Asked> answerable_, absent_;  // of validation, in order
  std::string digest_;
};

void enrol(Registry& r) {
  r.add<Task, Reading>("reading",
                       "short answers from passages, and \"not found\" where they hold none", "");
}

}  // namespace mneme::tasks::reading
