#include "bench/answers/answer_rows.h"

#include "mneme/core/error.h"
#include "mneme/core/progress.h"
#include "mneme/memory/choice.h"

#include <algorithm>
#include <filesystem>
#include <fmt/format.h>
#include <iterator>
#include <list>
#include <numeric>

namespace mneme::bench {
namespace {

using nlohmann::json;

constexpr std::size_t kBatch = 8;  // questions that are decoded together
// Bytes of states that are kept between batches; what falls out is computed again.
constexpr std::size_t kCacheBytes = std::size_t{3} << 29;
constexpr std::string_view kUncoded = "f16";

constexpr Variant kVariants[] = {
    {"gold", "the gold paragraph alone", Variant::How::gold, 0, ""},
    {"top1", "best span placed", Variant::How::placed, 1, "q8"},
    {"top2", "best 2 spans placed", Variant::How::placed, 2, "q8"},
    {"joint", "best 3 spans read jointly", Variant::How::joint, 3, ""},
    {"together", "best 3 spans placed", Variant::How::placed, 3, "q8"},
    {"together-f16", "best 3 spans placed, states uncoded", Variant::How::placed, 3, kUncoded},
    {"together-q4", "best 3 spans placed, states at 4 bits", Variant::How::placed, 3, "q4"},
    {"each", "best spans apart", Variant::How::apart, 0, "q8"},
    {"each-f16", "best spans apart, states uncoded", Variant::How::apart, 0, kUncoded},
    {"ask-each", "ask --place each --always", Variant::How::ask_each, 0, "q8"},
    {"ask-together", "ask --place together --top 3 --always", Variant::How::ask_together, 3, "q8"},
};

/// States of spans, uncoded, the least recently used ones dropped.
class StateCache {
 public:
  StateCache(MemoryFile& file, const Reader& reader) : file_(file), reader_(reader) {}

  /// Computes what is missing of `spans` in one go.
  void prepare(const std::vector<std::int64_t>& spans) {
    std::vector<std::int64_t> missing;
    for (const auto span : spans) {
      if (auto found = held_.find(span); found != held_.end()) {
        order_.splice(order_.end(), order_, found->second.place);
      } else if (std::find(missing.begin(), missing.end(), span) == missing.end()) {
        missing.push_back(span);
      }
    }
    std::vector<std::vector<std::int32_t>> ids;
    for (const auto span : missing) ids.push_back(reader_.span_ids(file_.span_text(span)));
    auto states = reader_.compute(ids);
    for (std::size_t i = 0; i < missing.size(); ++i) {
      bytes_ += states[i].size();
      order_.push_back(missing[i]);
      held_[missing[i]] = {std::move(states[i]), std::move(ids[i]), std::prev(order_.end())};
    }
    while (bytes_ > kCacheBytes && order_.size() > spans.size()) {
      bytes_ -= held_.at(order_.front()).state.size();
      held_.erase(order_.front());
      order_.pop_front();
    }
  }

  [[nodiscard]] const std::vector<std::int32_t>& ids(std::int64_t span) const {
    return held_.at(span).ids;
  }
  [[nodiscard]] std::int64_t stored_bytes(std::int64_t span, std::string_view codec) const {
    const auto& held = held_.at(span);
    const auto tokens = static_cast<std::int64_t>(held.ids.size());
    return std::ssize(codec == reader_.codec()
                          ? held.state
                          : reader_.recode(held.state, tokens, reader_.codec(), codec));
  }
  /// The state as it reads back from a codec.
  [[nodiscard]] SpanState state(std::int64_t span, std::string_view codec) const {
    const auto& held = held_.at(span);
    const auto tokens = static_cast<std::int64_t>(held.ids.size());
    if (codec == reader_.codec()) return reader_.decode(held.state, tokens, codec);
    return reader_.decode(reader_.recode(held.state, tokens, reader_.codec(), codec), tokens,
                          codec);
  }

 private:
  struct Held {
    std::string state;
    std::vector<std::int32_t> ids;
    std::list<std::int64_t>::iterator place;
  };
  MemoryFile& file_;
  const Reader& reader_;
  std::map<std::int64_t, Held> held_;
  std::list<std::int64_t> order_;  // least recently used first
  std::size_t bytes_ = 0;
};

/// What was read from one placed span.
json read_of(const CandidateReport& candidate) {
  return {{"answer", candidate.answer},
          {"log_probability", candidate.answer_log_probability},
          {"score", candidate.candidate.score},
          {"refused", candidate.refused}};
}

json row_of(const Answer& answer, const ArticleQuestion& question, const QuestionSet& set,
            const ArticleMemory& memory) {
  auto out = scored(answer.answer, question);
  out["found"] = answer.found;
  out["quotation"] = answer.quotation;
  out["relevance"] = answer.relevance;
  out["confidence"] = answer.confidence;
  out["document_tokens_evaluated"] = answer.document_tokens_evaluated;
  out["citations"] = json::array();
  for (const auto& citation : answer.citations) {
    const auto article = memory.article(citation.source);
    json c{{"source", citation.source},
           {"start", citation.start},
           {"end", citation.end},
           {"marked", citation.holds_answer}};
    c["inside"] = false;
    if (article != ArticleMemory::npos) {
      const std::string_view text = set.articles[article].text;
      if (citation.start >= 0 && citation.start < citation.end &&
          citation.end <= static_cast<std::int64_t>(text.size())) {
        const auto cited = text.substr(static_cast<std::size_t>(citation.start),
                                       static_cast<std::size_t>(citation.end - citation.start));
        const auto at = cited.find(citation.excerpt);
        const auto line_at = [&](std::int64_t byte) {
          return 1 +
                 std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(byte), '\n');
        };
        c["inside"] =
            !citation.excerpt.empty() && at != std::string_view::npos &&
            citation.line == line_at(citation.start) &&
            citation.excerpt_line == line_at(citation.start + static_cast<std::int64_t>(at));
        c["holds_answer"] = tasks::holds_words(cited, answer.answer);
        c["holds_gold"] = holds_gold_answer(cited, question);
        c["gold"] = is_gold(set, question, article, citation.start, citation.end);
      }
    }
    out["citations"].push_back(std::move(c));
  }
  out["read"] = json::array();
  for (const auto& candidate : answer.candidates) {
    if (!candidate.placed) continue;
    auto read = read_of(candidate);
    read.update(scored(candidate.answer, question));
    read["gold"] = memory.gold(question, candidate.candidate.id);
    out["read"].push_back(std::move(read));
  }
  return out;
}

class Run {
 public:
  Run(const QuestionSet& set, ArticleMemory& memory, const Reader& reader,
      std::span<const Retrieval> retrieved, AnswerRows& rows)
      : set_(set),
        memory_(memory),
        reader_(reader),
        retrieved_(retrieved),
        rows_(rows),
        cache_(memory.memory().file(), reader) {}

  void batch(const Variant& variant, std::span<const std::size_t> questions) {
    if (variant.how == Variant::How::ask_each || variant.how == Variant::How::ask_together) {
      for (const auto q : questions) ask(variant, q);
      return;
    }
    std::vector<State> states;
    std::vector<std::string> texts;
    std::vector<std::size_t> rows_of;  // how many rows each question has
    for (const auto q : questions) {
      const auto before = states.size();
      prepare(variant, q, states);
      rows_of.push_back(states.size() - before);
      texts.resize(states.size(), set_.questions[q].text);
    }
    const auto answers = reader_.answer(std::move(states), texts, reader_.prompt().max_tokens).rows;
    for (std::size_t i = 0, row = 0; i < questions.size(); row += rows_of[i++]) {
      const auto& question = set_.questions[questions[i]];
      const auto& retrieval = retrieved_[questions[i]];
      std::vector<std::string> said;
      std::vector<double> likely;
      std::vector<memory::ScoredAnswer> read;
      for (std::size_t r = row; r < row + rows_of[i]; ++r) {
        said.push_back(answers[r].text);
        likely.push_back(answers[r].mean_log_probability);
        read.push_back({&answers[r], read.size() < retrieval.scores.size()
                                         ? retrieval.scores[read.size()]
                                         : 0.0});
      }
      const auto best = memory::choose_answer(read, retrieval.relevance, reader_.prompt()).best;
      auto out = scored(said[best], question);
      out["tokens"] = answers[row + best].tokens;
      if (variant.how == Variant::How::apart)
        out["state_bytes_a_token"] = bytes_a_token(variant, questions[i]);
      if (rows_of[i] > 1) {
        out["answers"] = said;
        out["log_probabilities"] = likely;
      }
      rows_.add(variant.name, question.id, std::move(out));
    }
  }

  /// The states that some variants of a batch need, computed together.
  void prepare_states(std::span<const Variant> variants, std::span<const std::size_t> questions) {
    std::vector<std::int64_t> spans;
    for (const auto& variant : variants) {
      if (variant.how != Variant::How::placed && variant.how != Variant::How::apart &&
          variant.how != Variant::How::joint)
        continue;
      for (const auto q : questions) {
        for (const auto span : best(q, spans_of(variant))) spans.push_back(span);
      }
    }
    std::sort(spans.begin(), spans.end());
    spans.erase(std::unique(spans.begin(), spans.end()), spans.end());
    cache_.prepare(spans);
  }

 private:
  [[nodiscard]] std::int64_t spans_of(const Variant& variant) const {
    return variant.spans > 0 ? variant.spans : reader_.prompt().spans_apart;
  }

  [[nodiscard]] std::vector<std::int64_t> best(std::size_t q, std::int64_t n) const {
    const auto& spans = retrieved_[q].spans;
    return {spans.begin(),
            spans.begin() + std::min(static_cast<std::ptrdiff_t>(n), std::ssize(spans))};
  }

  /// What the states of a question's spans take as they are stored; NaN where there is none.
  [[nodiscard]] double bytes_a_token(const Variant& variant, std::size_t q) const {
    std::int64_t bytes = 0, tokens = 0;
    for (const auto span : best(q, spans_of(variant))) {
      bytes += cache_.stored_bytes(span, variant.codec);
      tokens += static_cast<std::int64_t>(cache_.ids(span).size());
    }
    return static_cast<double>(bytes) / static_cast<double>(tokens);
  }

  void prepare(const Variant& variant, std::size_t q, std::vector<State>& states) {
    const auto& question = set_.questions[q];
    if (variant.how == Variant::How::gold) {
      const auto& article = set_.articles[question.article];
      const auto [begin, end] = article.paragraphs[question.paragraph];
      states.push_back(reader_.prefix());
      reader_.run(states.back(),
                  reader_.span_ids(std::string_view(article.text)
                                       .substr(static_cast<std::size_t>(begin),
                                               static_cast<std::size_t>(end - begin))));
      return;
    }
    const auto spans = best(q, spans_of(variant));
    if (variant.how == Variant::How::apart) {
      for (const auto span : spans) {
        states.push_back(reader_.prefix());
        reader_.place(states.back(), cache_.state(span, variant.codec));
      }
      if (spans.empty()) states.push_back(reader_.prefix());
      return;
    }
    states.push_back(reader_.prefix());
    std::vector<std::int32_t> ids;
    for (std::size_t i = spans.size(); i-- > 0;) {  // best last, next to the question
      if (variant.how == Variant::How::joint) {
        ids.insert(ids.end(), cache_.ids(spans[i]).begin(), cache_.ids(spans[i]).end());
      } else {
        reader_.place(states.back(), cache_.state(spans[i], variant.codec));
      }
    }
    if (!ids.empty()) reader_.run(states.back(), ids);
  }

  void ask(const Variant& variant, std::size_t q) {
    const auto& question = set_.questions[q];
    AskOptions options;
    options.placement =
        variant.how == Variant::How::ask_each ? Placement::each : Placement::together;
    options.top = variant.spans;
    options.always = true;
    rows_.add(variant.name, question.id,
              row_of(memory_.memory().ask(question.text, options), question, set_, memory_));
  }

  const QuestionSet& set_;
  ArticleMemory& memory_;
  const Reader& reader_;
  std::span<const Retrieval> retrieved_;
  AnswerRows& rows_;
  StateCache cache_;
};

}  // namespace

std::span<const Variant> variants() noexcept { return kVariants; }

AnswerRows::AnswerRows(const std::string& file, json settings) {
  if (file.empty()) return;
  bool fresh = true;
  if (std::ifstream in(file); in) {
    std::int64_t number = 0;
    for (std::string line; std::getline(in, line);) {
      const auto row = json::parse(line, nullptr, false);
      // The last line of a run that was killed may be half a line.
      if (row.is_discarded() || !row.is_object()) continue;
      if (number++ == 0) {
        fresh = false;
        if (row.value("settings", json()) != settings) {
          throw Error(Errc::mismatch, fmt::format("{}: its rows were made with other settings "
                                                  "({}): name another file, or remove it",
                                                  file, row.value("settings", json()).dump()));
        }
        continue;
      }
      rows_[row.value("variant", "")][row.value("id", "")] = row;
    }
  }
  out_.open(file, fresh ? std::ios::trunc : std::ios::app);
  if (!out_) throw Error(Errc::io, fmt::format("{}: cannot be written", file));
  out_ << (fresh ? json{{"settings", settings}}.dump() : "") << "\n";
}

bool AnswerRows::has(std::string_view variant, const std::string& question) const {
  const auto found = rows_.find(variant);
  return found != rows_.end() && found->second.contains(question);
}

const json& AnswerRows::row(std::string_view variant, const std::string& question) const {
  const auto found = rows_.find(variant);
  MNEME_ASSERT(found != rows_.end());
  return found->second.at(question);
}

void AnswerRows::add(std::string_view variant, const std::string& question, json row) {
  row["variant"] = variant;
  row["id"] = question;
  if (out_.is_open()) out_ << row.dump(-1, ' ', false, json::error_handler_t::replace) << "\n";
  rows_[std::string(variant)][question] = std::move(row);
}

void AnswerRows::flush() {
  if (out_.is_open() && !out_.flush())
    throw Error(Errc::io, "the rows cannot be written: is the disk full?");
}

json scored(const std::string& answer, const ArticleQuestion& question) {
  return {{"answer", answer},
          {"f1", tasks::word_f1(answer, question.answers)},
          {"em", tasks::exact_match(answer, question.answers)},
          {"contains", holds_gold_answer(answer, question) ? 1 : 0}};
}

void answer_questions(const QuestionSet& set, ArticleMemory& memory, const Reader& reader,
                      std::span<const Retrieval> retrieved, std::span<const Variant> wanted,
                      AnswerRows& rows, const std::function<void()>& between) {
  MNEME_ASSERT(retrieved.size() == set.questions.size());
  std::vector<std::size_t> order(set.questions.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) {
    const auto& x = set.questions[a];
    const auto& y = set.questions[b];
    return std::pair(x.article, x.paragraph) < std::pair(y.article, y.paragraph);
  });
  Run run(set, memory, reader, retrieved, rows);
  Progress progress("answering", static_cast<std::int64_t>(order.size()), "questions");
  for (std::size_t first = 0; first < order.size(); first += kBatch) {
    between();
    const auto batch = std::span(order).subspan(first, std::min(kBatch, order.size() - first));
    std::vector<std::pair<const Variant*, std::vector<std::size_t>>> missing;
    std::vector<Variant> some;
    for (const auto& variant : wanted) {
      std::vector<std::size_t> questions;
      std::copy_if(batch.begin(), batch.end(), std::back_inserter(questions),
                   [&](auto q) { return !rows.has(variant.name, set.questions[q].id); });
      if (questions.empty()) continue;
      missing.emplace_back(&variant, std::move(questions));
      some.push_back(variant);
    }
    if (!missing.empty()) run.prepare_states(some, batch);
    for (const auto& [variant, questions] : missing) run.batch(*variant, questions);
    rows.flush();
    progress.advance(static_cast<std::int64_t>(batch.size()));
  }
}

void ask_in_doubt(std::span<const std::string> questions, std::string_view variant,
                  ArticleMemory& memory, AnswerRows& rows, const std::function<void()>& between) {
  Progress progress(fmt::format("asking ({})", variant),
                    static_cast<std::int64_t>(questions.size()), "questions");
  AskOptions options;
  options.always = true;
  for (const auto& question : questions) {
    between();
    if (!rows.has(variant, question)) {
      const auto answer = memory.memory().ask(question, options);
      json row{{"relevance", answer.relevance},
               {"confidence", answer.confidence},
               {"answer", answer.answer},
               {"read", json::array()}};
      for (const auto& candidate : answer.candidates) {
        if (candidate.placed) row["read"].push_back(read_of(candidate));
      }
      rows.add(variant, question, std::move(row));
      rows.flush();
    }
    progress.advance(1);
  }
}

}  // namespace mneme::bench
