#include "mneme/memory/prompt.h"

#include "mneme/core/error.h"
#include "mneme/weights/digests.h"

#include <cmath>
#include <nlohmann/json.hpp>

namespace mneme {
namespace {

// Our own passages; no data set's text is in them. Answers stand in quotation marks: on tuning questions that gave the
// best likelihood of three forms, and it shows where a short answer ends.
constexpr const char* kFewShotQuotes =
    "Passage: The bridge at Varn was begun in 1904 and opened to carts four years later. It was "
    "paid for by the salt merchant Odile Kerr, who asked "
    "that no toll ever be taken. After the flood of 1931 its two outer arches were rebuilt in "
    "concrete.\n\n"
    "Question: Who paid for the bridge at Varn?\nAnswer: \"Odile Kerr\"\n\n"
    "Question: What were the outer arches rebuilt in?\nAnswer: \"concrete\"\n\n"
    "Passage: Marsh wrens weave several nests each spring, but only one is used for eggs. The "
    "others are thought to confuse snakes. The eggs hatch "
    "after about 13 days.\n\n"
    "Question: How long do the eggs take to hatch?\nAnswer: \"about 13 days\"\n\n"
    "Passage: The parliament of Lorne has 84 seats, of which 60 are filled by districts and the "
    "rest from party lists. Sessions open in the old customs "
    "house at Tarrow each September, a custom begun by Speaker Ines Aldo in 1877.\n\n"
    "Question: How many seats are filled by districts?\nAnswer: \"60\"\n\n"
    "Question: In what month do the sessions open?\nAnswer: \"September\"\n\n"
    "Question: Where do the sessions open?\nAnswer: \"the old customs house at Tarrow\"\n\n"
    "Passage: Pumice forms when lava full of gas cools quickly. The bubbles stay in the stone and "
    "make it so light that it floats on water. Stonemasons "
    "value it as an abrasive, and gardeners mix it into heavy soil to let roots breathe.\n\n"
    "Question: Why does pumice float on water?\nAnswer: \"bubbles stay in the stone\"\n\n"
    "Question: What do gardeners mix pumice into?\nAnswer: \"heavy soil\"\n\n";

}  // namespace

Prompt Prompt::few_shot_quotes() {
  Prompt out;
  out.prefix = kFewShotQuotes;
  out.span_before = "Passage: ";
  out.span_after = "\n\n";
  out.question_before = "Question: ";
  out.question_after = "\nAnswer: \"";
  out.answer_ends_at = "\"";
  // Set on 1,892 tuning questions, of which it refuses 3 %.
  out.not_found_below = 0.71;
  // Set on 1,500 tuning questions: F1 is flat from 4 to 8, and one point above that of log-probability - ln(rank).
  out.score_weight = 5;
  return out;
}

std::string Prompt::to_json() const {
  return nlohmann::json{{"prefix", prefix},
                        {"span_before", span_before},
                        {"span_after", span_after},
                        {"question_before", question_before},
                        {"question_after", question_after},
                        {"answer_ends_at", answer_ends_at},
                        {"refusal", refusal},
                        {"max_tokens", max_tokens},
                        {"spans_apart", spans_apart},
                        {"not_found_below", not_found_below},
                        {"score_weight", score_weight},
                        {"refusal_weight", refusal_weight},
                        {"refused_below", refused_below},
                        {"relevance_weight", relevance_weight}}
      .dump();
}

Prompt Prompt::from_json(std::string_view text) {
  try {
    const auto json = nlohmann::json::parse(text);
    Prompt out;
    json.at("prefix").get_to(out.prefix);
    json.at("span_before").get_to(out.span_before);
    json.at("span_after").get_to(out.span_after);
    json.at("question_before").get_to(out.question_before);
    json.at("question_after").get_to(out.question_after);
    json.at("answer_ends_at").get_to(out.answer_ends_at);
    json.at("max_tokens").get_to(out.max_tokens);
    json.at("not_found_below").get_to(out.not_found_below);
    json.at("score_weight").get_to(out.score_weight);
    // Memories that were made before there were readers have none of these.
    const auto since = [&](const char* key, auto& field) {
      if (json.contains(key)) json.at(key).get_to(field);
    };
    since("refusal", out.refusal);
    since("spans_apart", out.spans_apart);
    since("refusal_weight", out.refusal_weight);
    since("refused_below", out.refused_below);
    since("relevance_weight", out.relevance_weight);
    if (out.max_tokens < 1 || out.max_tokens > 4096 || out.spans_apart < 1 ||
        out.spans_apart > 64) {
      throw Error(Errc::corrupt, "");
    }
    for (const auto number : {out.not_found_below, out.score_weight, out.refusal_weight,
                              out.refused_below, out.relevance_weight}) {
      if (!std::isfinite(number)) throw Error(Errc::corrupt, "");
    }
    return out;
  } catch (const std::exception&) {
    throw Error(Errc::corrupt, "the memory's prompt is damaged: run `mneme verify` on it");
  }
}

std::string Prompt::prefix_digest() const {
  // Lengths stand between the pieces, so that no two prompts run together to the same bytes.
  std::string all;
  for (const auto* piece : {&prefix, &span_before, &span_after})
    all += std::to_string(piece->size()) + ":" + *piece;
  return sha256_hex(all);
}

}  // namespace mneme
