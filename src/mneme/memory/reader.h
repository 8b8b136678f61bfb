// Reader: a language model as a memory uses it. It computes the states of spans behind the shared prefix, places stored
// ones, and answers questions from them. It knows no file.
#pragma once

#include "mneme/core/state.h"
#include "mneme/kv/codec.h"
#include "mneme/kv/plan.h"
#include "mneme/memory/prompt.h"
#include "mneme/models/language_model.h"

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mneme {

/// The keys and values of one span in all layers, as they read back from the codec: what is placed is what is stored.
struct SpanState {
  std::int64_t tokens = 0;
  std::vector<KvSlice> layers;
};

/// One answer that was read.
struct ReadAnswer {
  std::string text;                 ///< trimmed and cut as the prompt says
  std::int64_t tokens = 0;          ///< generated, the end token not counted
  double mean_log_probability = 0;  ///< over all tokens taken, the end included
  bool ended = false;               ///< false: the tokens were used up
  double refused = 0;  ///< probability that the model refuses instead; 0 for one that never does
};

/// Answers of several rows and what they took.
struct ReadAnswers {
  std::vector<ReadAnswer> rows;
  std::int64_t question_tokens = 0;
  double first_token_seconds = 0,
         decode_seconds = 0;  ///< question run to first token; first token to end
};

class Reader {
 public:
  /// `kv` says how states are kept: which entries of a span, and in what codec. Throws Error(usage) for a bad chain or one
  /// whose numbers of this model's heads have not been measured, and Error(unsupported) for a model without KV stores.
  Reader(std::shared_ptr<const LanguageModel> model, Prompt prompt, const Chain& kv);
  /// Throws Error(usage) for a chain that a memory's states cannot be kept by: a bad one, or one that moves entries, or
  /// keeps or reads them otherwise than a span's state stands in a file.
  static void check_kv(const Chain& kv);
  /// The same for one that makes stored states smaller, where no query is there to judge entries by.
  static void check_consolidation(const Chain& kv);

  [[nodiscard]] const LanguageModel& model() const { return *model_; }
  [[nodiscard]] const Prompt& prompt() const { return prompt_; }
  [[nodiscard]] const KvPlan& plan() const { return *plan_; }
  /// What a stored state belongs to beside its model: all that stands before a span, as this tokenizer reads it.
  [[nodiscard]] const std::string& prefix_digest() const { return prefix_digest_; }
  [[nodiscard]] std::int64_t prefix_tokens() const {
    return static_cast<std::int64_t>(prefix_ids_.size());
  }

  /// Token ids of a span with what the prompt puts around it; pieces are tokenized apart.
  [[nodiscard]] std::vector<std::int32_t> span_ids(std::string_view text) const;
  [[nodiscard]] std::vector<std::int32_t> question_ids(std::string_view question) const;

  /// The bytes of the states of spans, each alone behind the prefix; spans of like length run together. `whole`: with all
  /// entries, in the codec of `whole_codec`.
  [[nodiscard]] std::vector<std::string> compute(std::span<const std::vector<std::int32_t>> spans,
                                                 bool whole = false) const;
  /// One long text in one pass, cut into spans: each sees the prefix and up to `window` entries before it.
  class Stream;
  /// Reads the bytes back; throws Error(corrupt) when they are not of this model and codec.
  [[nodiscard]] SpanState decode(std::string_view bytes, std::int64_t tokens,
                                 std::string_view codec) const;
  /// Bytes of a state of n tokens that keeps all of them.
  [[nodiscard]] std::int64_t state_bytes(std::int64_t tokens) const;
  /// The same state in another codec.
  [[nodiscard]] std::string recode(std::string_view bytes, std::int64_t tokens,
                                   std::string_view from, std::string_view to) const;
  /// The bytes of a state and the codec that they are in.
  struct Encoded {
    std::string bytes, codec;
  };
  /// A stored state as a plan keeps it, for consolidation: fewer entries, fewer bits or both.
  [[nodiscard]] Encoded consolidated(std::string_view bytes, std::int64_t tokens,
                                     std::string_view codec, const KvPlan& plan) const;
  /// The name of what states are kept in: the codec's, behind "kept-" where heads hold some entries each.
  [[nodiscard]] const std::string& codec() const { return codec_name_; }
  [[nodiscard]] std::string whole_codec() const;

  /// A State of one row that holds the prefix; pages are shared with every other such State.
  [[nodiscard]] State prefix() const { return prefix_.fork(); }
  /// Appends a span's state to row 0, its keys turned to the row's next positions.
  void place(State& state, const SpanState& span) const;
  /// Runs ids behind what row 0 holds (the joint reading of spans, where nothing is placed).
  void run(State& state, std::span<const std::int32_t> ids) const;
  /// The same, and the bytes of their state; row 0 holds all of it, whatever the plan keeps for the file.
  [[nodiscard]] std::string run_and_encode(State& state, std::span<const std::int32_t> ids) const;

  /// Asks every State (one row each) the same question and decodes all answers as one batch. Where the prompt has a
  /// refusal, every row still gives the best answer that is none, and how likely the model begins one ("not found") is
  /// what the row says of having no answer: whoever asks weighs the two. An answer that only shares the refusal's first
  /// token ("not guilty") stands if that is what the model would say.
  [[nodiscard]] ReadAnswers answer(std::vector<State> states, std::string_view question,
                                   std::int64_t max_tokens) const;
  /// The same with a question of its own for every State.
  [[nodiscard]] ReadAnswers answer(std::vector<State> states,
                                   std::span<const std::string> questions,
                                   std::int64_t max_tokens) const;

  /// Tokens that fit behind the prefix, with room for a question and an answer.
  [[nodiscard]] std::int64_t room() const;
  /// The same for this question and an answer of up to `max_tokens` (512 of them are kept free at most: an answer may
  /// also end where the context does). Throws Error(full) if the question leaves no room at all.
  [[nodiscard]] std::int64_t room(std::string_view question, std::int64_t max_tokens) const;
  /// Entries [begin, end) of a row as they are stored: all of them, or where the plan drops some, what it left of them.
  [[nodiscard]] std::string encode(const State& state, std::int64_t row, std::int64_t begin,
                                   std::int64_t end) const;

 private:
  /// What follows the first `begin` tokens of every row is cut as the plan says, beginning now.
  void cut_behind(State& state, std::int64_t begin) const;
  [[nodiscard]] std::string encode(const State& state, std::int64_t row, std::int64_t begin,
                                   std::int64_t end, std::string_view codec) const;
  [[nodiscard]] const Codec& codec_named(std::string_view name) const;
  /// How likely each row refuses, by the logits [R,1,V] of its first token, from which refusing is taken out.
  std::vector<double> take_refusals(at::Tensor& logits, const State& state, Compute compute) const;

  std::shared_ptr<const LanguageModel> model_;
  Prompt prompt_;
  std::shared_ptr<const KvPlan> plan_;
  std::shared_ptr<const KvPlan> cut_;  ///< what of the plan drops entries; null: nothing does
  std::string codec_name_;
  mutable std::map<std::string, std::unique_ptr<Codec>, std::less<>>
      codecs_;  ///< by name, made when first met
  std::string prefix_digest_;
  std::vector<std::int32_t> prefix_ids_, refusal_ids_;
  State prefix_;
  std::int64_t heads_ = 0, key_ = 0, value_ = 0, layers_ = 0;
};

/// A long text read in one pass: every span's state is computed with the text before it in view, as far as `window`
/// entries reach. Positions start over behind the prefix before the model's context ends, the window's entries being
/// placed there again.
class Reader::Stream {
 public:
  Stream(const Reader& reader, std::int64_t window);
  /// The bytes of the next span's state.
  [[nodiscard]] std::string next(std::span<const std::int32_t> ids);

 private:
  const Reader& reader_;
  std::int64_t window_;
  State state_;
};

}  // namespace mneme
