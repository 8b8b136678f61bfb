#include "mneme/tasks/material.h"

#include "mneme/core/log.h"
#include "mneme/core/progress.h"
#include "mneme/tasks/squad.h"
#include "mneme/text/span.h"
#include "mneme/text/white_space.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <sstream>
#include <string_view>

namespace mneme::tasks {
namespace {

// Longer questions are left out: Reader keeps 512 positions free for a question and its answer.
constexpr std::size_t kMaxQuestionTokens = 448;
constexpr std::size_t kEmbedBatch = 128;

/// An answer as it is to be said: white space as single spaces, without the mark that would end it.
std::string spoken(std::string_view answer, std::string_view end) {
  std::string out;
  for (std::size_t i = 0; i < answer.size();) {
    if (!end.empty() && answer.substr(i).starts_with(end)) {
      i += end.size();
    } else if (const auto n = text::space_at(answer, i)) {
      if (!out.empty() && out.back() != ' ') out += ' ';
      i += n;
    } else {
      out += answer[i++];
    }
  }
  return trimmed(out);
}

std::set<std::string> distinct_words_of(std::string_view text) {
  std::istringstream in(normalised(text));
  return {std::istream_iterator<std::string>(in), {}};
}

std::vector<std::string> shortest_first(std::vector<std::string> answers) {
  std::stable_sort(answers.begin(), answers.end(),
                   [](const auto& a, const auto& b) { return a.size() < b.size(); });
  return answers;
}

/// Of the passages that hold a gold answer within the question's paragraph, the one with most of the
/// question's words; nothing if a border between passages cuts every answer.
std::optional<std::size_t> gold_of(const ReadingQuestion& question, const ReadingText& text,
                                   std::span<const Span> spans) {
  const auto [first, last] = text.paragraphs.at(question.paragraph);
  const auto asked = distinct_words_of(question.text);
  std::optional<std::size_t> best;
  std::size_t most = 0;
  for (std::size_t i = 0; i < spans.size(); ++i) {
    const auto from = std::max(spans[i].begin, first), to = std::min(spans[i].end, last);
    if (from >= to) continue;
    const auto part = std::string_view(text.text).substr(static_cast<std::size_t>(from),
                                                         static_cast<std::size_t>(to - from));
    const bool holds = std::any_of(question.answers.begin(), question.answers.end(),
                                   [&](const auto& answer) { return holds_answer(part, answer); });
    if (!holds) continue;
    std::size_t shared = 0;
    for (const auto& word : distinct_words_of(part)) shared += asked.count(word);
    if (!best || shared > most) {
      best = i;
      most = shared;
    }
  }
  return best;
}

}  // namespace

Material material_of(const ReadingData& data, const Reader& reader) {
  const auto& tokenizer = *reader.model().tokenizer;
  const auto& prompt = reader.prompt();
  const CountTokens count = [&](std::string_view text) {
    return static_cast<std::int64_t>(tokenizer.encode(text).size());
  };
  Material out;
  std::map<std::string, std::size_t> sources;
  std::vector<std::vector<Span>> spans_of;           // passages of each text
  std::vector<std::size_t> first_passage_of;         // of each text, into out.passages
  std::vector<bool> answers_any(data.texts.size());  // of each text
  std::int64_t too_long = 0, with_answers = 0;
  for (const auto& text : data.texts) {
    const auto source = sources.emplace(text.source, sources.size()).first->second;
    if (source == out.sources.size()) out.sources.emplace_back();
    auto& spans = spans_of.emplace_back();
    first_passage_of.push_back(out.passages.size());
    for (auto& span : cut_spans(text.text, Media::text, count)) {
      if (span.kind != "passage") continue;
      Passage passage;
      passage.source = source;
      passage.text = text.text.substr(static_cast<std::size_t>(span.begin),
                                      static_cast<std::size_t>(span.end - span.begin));
      passage.ids = reader.span_ids(passage.text);
      out.sources[source].passages.push_back(out.passages.size());
      out.passages.push_back(std::move(passage));
      spans.push_back(std::move(span));
    }
  }
  for (const auto& asked : data.questions) {
    const auto& text = data.texts.at(asked.of_text);
    const auto& spans = spans_of[asked.of_text];
    const auto first = first_passage_of[asked.of_text];
    PassageQuestion question;
    question.id = asked.id;
    question.text = asked.text;
    question.answers = asked.answers;
    question.ids = reader.question_ids(asked.text);
    if (question.ids.size() > kMaxQuestionTokens) {
      ++too_long;
      continue;
    }
    const auto [begin, end] = text.paragraphs.at(asked.paragraph);
    for (std::size_t i = 0; i < spans.size(); ++i) {
      if (spans[i].begin < end && spans[i].end > begin) question.parts.push_back(first + i);
    }
    const auto index = out.questions.size();
    if (asked.answers.empty()) {
      for (const auto part : question.parts) {
        question.passage = part;
        out.passages[part].unanswerable.push_back(index);
      }
      if (!question.parts.empty()) out.questions.push_back(std::move(question));
      continue;
    }
    ++with_answers;
    const auto gold = gold_of(asked, text, spans);
    if (!gold) {
      ++out.cut;
      continue;
    }
    question.passage = first + *gold;
    auto& passage = out.passages[question.passage];
    for (const auto& answer : shortest_first(asked.answers)) {
      if (!holds_answer(passage.text, answer)) continue;
      question.answer = tokenizer.encode(spoken(answer, prompt.answer_ends_at));
      if (!question.answer.empty()) break;
    }
    // What no answer is long enough for cannot be learned, though it can be asked.
    if (static_cast<std::int64_t>(question.answer.size()) > prompt.max_tokens) {
      ++out.too_long;
      question.answer.clear();
    }
    if (!question.answer.empty()) passage.questions.push_back(index);
    answers_any[asked.of_text] = true;
    out.answerable.push_back(index);
    out.sources[passage.source].questions.push_back(index);
    out.questions.push_back(std::move(question));
  }
  for (std::size_t t = 0; t < data.texts.size(); ++t) {
    for (std::size_t i = 0; i < spans_of[t].size(); ++i) {
      out.passages[first_passage_of[t] + i].in_vain = !answers_any[t];
    }
  }
  if (too_long > 0) {
    log::warn("{} questions of more than {} tokens are left out", too_long, kMaxQuestionTokens);
  }
  if (out.cut + out.too_long > 0) {
    log::warn(
        "of {} questions with an answer {} are left out, as a border between passages cuts "
        "every answer, and {} are not learned, as the answer is longer than {} tokens",
        with_answers, out.cut, out.too_long, prompt.max_tokens);
  }
  return out;
}

void add_to(Sha256& digest, const Material& material) {
  // Every text with its length, every list with its own: no two materials are the same bytes.
  const auto add_number = [&](std::size_t n) { digest.update(std::to_string(n) + " "); };
  const auto add = [&](std::string_view text) {
    add_number(text.size());
    digest.update(text);
  };
  const auto add_ids = [&](std::span<const std::int32_t> ids) {
    add_number(ids.size());
    digest.update(std::as_bytes(ids));
  };
  add_number(material.passages.size());
  for (const auto& passage : material.passages) {
    add_number(passage.source);
    add(passage.text);
    add_ids(passage.ids);
  }
  add_number(material.questions.size());
  for (const auto& question : material.questions) {
    add_number(question.passage);
    add(question.text);
    add_ids(question.ids);
    add_ids(question.answer);
    add_number(question.answers.size());
    for (const auto& answer : question.answers) add(answer);
  }
}

void embed(Material& material, const SentenceEncoder& encoder,
           const std::function<void()>& between) {
  std::size_t total = 0;
  for (const auto& source : material.sources)
    total += source.passages.size() + source.questions.size();
  Progress progress("embedding passages and questions", static_cast<std::int64_t>(total), "texts");
  const auto vectors_of = [&](const std::vector<std::string_view>& texts) {
    auto out = at::empty({static_cast<std::int64_t>(texts.size()), encoder.width()}, at::kFloat);
    for (std::size_t first = 0; first < texts.size(); first += kEmbedBatch) {
      between();
      const auto n = std::min(kEmbedBatch, texts.size() - first);
      const auto some = encoder.embed(std::span(texts).subspan(first, n));
      for (std::size_t i = 0; i < n; ++i) {
        std::copy(
            some[i].vector.begin(), some[i].vector.end(),
            out.mutable_data_ptr<float>() + static_cast<std::int64_t>(first + i) * encoder.width());
      }
      progress.advance(static_cast<std::int64_t>(n));
    }
    return out;
  };
  for (auto& source : material.sources) {
    std::vector<std::string_view> passages, questions;
    for (const auto i : source.passages) passages.emplace_back(material.passages[i].text);
    for (const auto i : source.questions) questions.emplace_back(material.questions[i].text);
    source.passage_vectors = vectors_of(passages);
    source.question_vectors = vectors_of(questions);
  }
}

}  // namespace mneme::tasks
