#include "mneme/memory/reader.h"

#include "mneme/core/error.h"
#include "mneme/core/registry.h"
#include "mneme/decode/batch.h"
#include "mneme/kernels/level.h"
#include "mneme/kv/kept_slice.h"
#include "mneme/memory/clock.h"
#include "mneme/memory/rep.h"
#include "mneme/models/kv_plan.h"
#include "mneme/models/reconstruct.h"
#include "mneme/text/white_space.h"
#include "mneme/weights/digests.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <chrono>
#include <fmt/format.h>
#include <limits>
#include <numeric>

namespace mneme {
namespace {

using memory::seconds_since;

// Tokens of spans that run together: the weights are unpacked once for all of them.
constexpr std::int64_t kBatchTokens = 1024;
// Tokens of one pass of a long text.
constexpr std::size_t kChunk = 512;
// Kept free behind the placed spans for the question and its answer.
constexpr std::int64_t kQuestionRoom = 512;

/// What states that are kept are computed in: never from activations of 8 bits, whose rounding every later answer would see.
Compute state_compute(Compute compute) {
  if (compute != Compute::automatic) return compute;
  return kernels::has_bf16_products() ? Compute::bf16 : Compute::f32;
}

/// Rows of different lengths, padded at their ends.
Batch ragged(std::span<const std::vector<std::int32_t>> rows, Compute compute, LogitsAt at) {
  Batch batch;
  std::size_t T = 0;
  for (const auto& row : rows) T = std::max(T, row.size());
  batch.ids =
      at::zeros({static_cast<std::int64_t>(rows.size()), static_cast<std::int64_t>(T)}, at::kLong);
  bool equal = true;
  for (std::size_t b = 0; b < rows.size(); ++b) {
    std::copy(rows[b].begin(), rows[b].end(),
              batch.ids[static_cast<std::int64_t>(b)].mutable_data_ptr<std::int64_t>());
    batch.lengths.push_back(static_cast<std::int64_t>(rows[b].size()));
    equal = equal && rows[b].size() == T;
  }
  if (equal) batch.lengths.clear();
  batch.compute = compute;
  batch.logits_at = at;
  return batch;
}

using memory::kKept;

bool is_kept(std::string_view codec) { return codec.starts_with(kKept); }

/// "kept-q8" -> "q8"
std::string_view numbers_of(std::string_view codec) {
  return is_kept(codec) ? codec.substr(kKept.size()) : codec;
}

/// The stages of a chain that drop entries, with what these need.
Chain cutting(const Chain& chain) {
  Chain out;
  for (const auto& stage : chain) {
    if (registry().make<KvStage>(stage)->role() != KvRole::encode) out.push_back(stage);
  }
  return out;
}

State joined(std::vector<State>& states) {
  if (states.size() == 1) return std::move(states.front());
  std::vector<const State*> pointers;
  for (const auto& state : states) pointers.push_back(&state);
  return State::concat(pointers);
}

}  // namespace

Reader::Reader(std::shared_ptr<const LanguageModel> model, Prompt prompt, const Chain& kv)
    : model_(std::move(model)), prompt_(std::move(prompt)) {
  check_kv(kv);
  plan_ = kv_plan(kv, *model_);
  if (!plan_->evict().empty()) cut_ = kv_plan(cutting(kv), *model_);
  codec_name_ = (cut_ ? std::string(kKept) : "") + (plan_->codec() ? plan_->codec_name() : "f16");
  prefix_digest_ = sha256_hex(prompt_.prefix_digest() + model_->tokenizer->digest());
  prefix_ids_ = model_->tokenizer->encode(prompt_.prefix);
  if (!prompt_.refusal.empty()) refusal_ids_ = model_->tokenizer->encode(prompt_.refusal);
  const c10::InferenceMode inference;
  prefix_ = model_->model->start(1);
  const auto stores = kv_stores(std::as_const(prefix_));
  if (stores.empty())
    throw Error(
        Errc::unsupported,
        fmt::format("{} keeps no keys and values: its states cannot be placed", model_->name));
  layers_ = static_cast<std::int64_t>(stores.size());
  run(prefix_, prefix_ids_);
  const auto probe = kv_stores(std::as_const(prefix_))
                         .front()
                         ->read(0, 0, std::min<std::int64_t>(1, prefix_tokens()));
  heads_ = probe.keys.size(0);
  key_ = probe.keys.size(2);
  value_ = probe.values.size(2);
}

void Reader::check_kv(const Chain& kv) {
  const KvPlan plan(kv);
  const bool merges =
      std::any_of(plan.evict().begin(), plan.evict().end(),
                  [](const KvPlan::Eviction& eviction) { return eviction.merge != nullptr; });
  if (!merges && !plan.place() && !plan.narrow() && !plan.select() && !plan.retrieve()) return;
  throw Error(
      Errc::usage,
      fmt::format("kv: '{}' moves, merges or narrows entries or reads only some, which a memory's "
                  "spans cannot do: name what they keep and in what codec, such as "
                  "'snapkv | keep(ratio=0.5) | quantize(bits=8)'",
                  print(kv)));
}

void Reader::check_consolidation(const Chain& kv) {
  check_kv(kv);
  const KvPlan plan(kv);
  if (kv.empty())
    throw Error(Errc::usage, "consolidate: an empty step makes no state smaller: leave it out");
  const auto& needs = plan.needs();
  if (needs.attention == AttentionLevel::none && needs.query_window == 0 && !needs.token_ids &&
      !needs.reconstruction && needs.head_profile.empty())
    return;
  throw Error(
      Errc::usage,
      fmt::format("consolidate: '{}' looks at more than keys and values, which is all that a "
                  "stored state has: judge entries by these, as in 'keydiff | keep(ratio=0.5)'",
                  print(kv)));
}

std::vector<std::int32_t> Reader::span_ids(std::string_view text) const {
  return model_->tokenizer->encode(prompt_.span_before + std::string(text) + prompt_.span_after);
}

std::vector<std::int32_t> Reader::question_ids(std::string_view question) const {
  return model_->tokenizer->encode(prompt_.question_before + std::string(text::trimmed(question)) +
                                   prompt_.question_after);
}

std::int64_t Reader::room() const {
  const auto context = model_->model->shape().context;
  if (context <= 0) return std::numeric_limits<std::int64_t>::max();
  return std::max<std::int64_t>(0, context - prefix_tokens() - kQuestionRoom);
}

std::int64_t Reader::room(std::string_view question, std::int64_t max_tokens) const {
  const auto context = model_->model->shape().context;
  if (context <= 0) return std::numeric_limits<std::int64_t>::max();
  const auto asked = static_cast<std::int64_t>(question_ids(question).size());
  const auto answer = std::min(max_tokens, kQuestionRoom);
  const auto left = context - prefix_tokens() - std::max(kQuestionRoom, asked + answer);
  if (left <= 0) {
    const auto most = std::max<std::int64_t>(0, context - prefix_tokens() - answer - 1);
    throw Error(Errc::full, fmt::format("the question has {} tokens, the model's context takes {} "
                                        "beside the prompt and the answer: shorten it by {} tokens",
                                        asked, most, asked - most));
  }
  return left;
}

const Codec& Reader::codec_named(std::string_view name) const {
  auto found = codecs_.find(name);
  if (found == codecs_.end())
    found = codecs_.emplace(std::string(name), registry().make<Codec>(Stage{std::string(name), {}}))
                .first;
  return *found->second;
}

std::int64_t Reader::state_bytes(std::int64_t tokens) const {
  return layers_ * codec_named(numbers_of(codec_name_)).bytes(heads_, tokens, key_, value_);
}

void Reader::run(State& state, std::span<const std::int32_t> ids) const {
  const c10::InferenceMode inference;
  for (std::size_t i = 0; i < ids.size(); i += kChunk) {
    const auto piece = ids.subspan(i, std::min(kChunk, ids.size() - i));
    const std::vector<std::vector<std::int32_t>> row{{piece.begin(), piece.end()}};
    static_cast<void>(
        model_->model->forward(ragged(row, state_compute(model_->compute), LogitsAt::none), state));
  }
}

std::string Reader::run_and_encode(State& state, std::span<const std::int32_t> ids) const {
  const auto begin = kv_stores(std::as_const(state)).front()->seen(0),
             end = begin + static_cast<std::int64_t>(ids.size());
  if (!cut_) {
    run(state, ids);
    return encode(state, 0, begin, end);
  }
  look_for(state, {cut_});
  run(state, ids);
  // What is stored of a span is cut by itself; the text that follows sees all of it.
  auto cut = state.fork();
  cut_behind(cut, begin);
  for (auto* store : kv_stores(cut)) store->settle();
  finish_prompt(*model_, cut, ids, {}, state_compute(model_->compute));
  return encode(cut, 0, begin, end);
}

void Reader::cut_behind(State& state, std::int64_t begin) const {
  for (auto* store : kv_stores(state)) store->protect(begin);
  use_plan(state, cut_);
}

std::string Reader::whole_codec() const { return std::string(numbers_of(codec_name_)); }

std::string Reader::encode(const State& state, std::int64_t row, std::int64_t begin,
                           std::int64_t end) const {
  return encode(state, row, begin, end, codec_name_);
}

std::string Reader::encode(const State& state, std::int64_t row, std::int64_t begin,
                           std::int64_t end, std::string_view name) const {
  const auto& codec = codec_named(numbers_of(name));
  std::string out;
  if (!is_kept(name)) out.reserve(static_cast<std::size_t>(state_bytes(end - begin)));
  for (const auto* store : kv_stores(state)) {
    if (is_kept(name)) {
      encode_kept(codec, store->read_kept(row, begin, end), out);
    } else {
      codec.encode(store->read(row, begin, end), out);
    }
  }
  return out;
}

std::vector<std::string> Reader::compute(std::span<const std::vector<std::int32_t>> spans,
                                         bool whole) const {
  const c10::InferenceMode inference;
  const auto codec = whole ? whole_codec() : codec_name_;
  const bool reads_twice = is_kept(codec) && cut_->needs().reconstruction;  // one row at a time
  std::vector<std::string> out(spans.size());
  std::vector<std::size_t> order(spans.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](auto a, auto b) { return spans[a].size() < spans[b].size(); });
  for (std::size_t first = 0; first < order.size();) {
    std::vector<std::vector<std::int32_t>> rows;
    std::vector<State> states;
    for (std::size_t i = first; i < order.size(); ++i) {
      const auto T = static_cast<std::int64_t>(spans[order[i]].size());
      if (!rows.empty() &&
          (reads_twice || T * static_cast<std::int64_t>(rows.size() + 1) > kBatchTokens))
        break;
      rows.push_back(spans[order[i]]);
      states.push_back(prefix());
    }
    auto state = joined(states);
    states.clear();
    if (is_kept(codec)) cut_behind(state, prefix_tokens());
    static_cast<void>(model_->model->forward(
        ragged(rows, state_compute(model_->compute), LogitsAt::none), state));
    if (reads_twice) {
      finish_prompt(*model_, state, rows.front(), {}, state_compute(model_->compute));
    } else if (is_kept(codec)) {
      finish_prompt(state);
    }
    for (std::size_t b = 0; b < rows.size(); ++b) {
      out[order[first + b]] =
          encode(state, static_cast<std::int64_t>(b), prefix_tokens(),
                 prefix_tokens() + static_cast<std::int64_t>(rows[b].size()), codec);
    }
    first += rows.size();
  }
  return out;
}

SpanState Reader::decode(std::string_view bytes, std::int64_t tokens,
                         std::string_view codec) const {
  const auto& from = codec_named(numbers_of(codec));
  SpanState out{tokens, {}};
  if (is_kept(codec)) {
    if (tokens < 1) throw Error(Errc::corrupt, "a stored state has no tokens");
    for (std::int64_t layer = 0; layer < layers_; ++layer)
      out.layers.push_back(decode_kept(from, bytes, heads_, tokens, key_, value_));
    if (!bytes.empty())
      throw Error(Errc::corrupt,
                  fmt::format("a stored state has {} bytes more than it says", bytes.size()));
    return out;
  }
  const auto each = from.bytes(heads_, tokens, key_, value_);
  if (tokens < 1 || static_cast<std::int64_t>(bytes.size()) != layers_ * each) {
    throw Error(Errc::corrupt,
                fmt::format("a stored state of {} tokens has {} bytes where {} are wanted", tokens,
                            bytes.size(), layers_ * each));
  }
  for (std::int64_t layer = 0; layer < layers_; ++layer) {
    out.layers.push_back(from.decode(
        bytes.substr(static_cast<std::size_t>(layer * each), static_cast<std::size_t>(each)),
        heads_, tokens, key_, value_));
  }
  return out;
}

std::string Reader::recode(std::string_view bytes, std::int64_t tokens, std::string_view from,
                           std::string_view to) const {
  MNEME_ASSERT(is_kept(from) == is_kept(to));
  const auto span = decode(bytes, tokens, from);
  const auto& codec = codec_named(numbers_of(to));
  std::string out;
  for (const auto& layer : span.layers) {
    if (is_kept(to)) {
      encode_kept(codec, layer, out);
    } else {
      codec.encode(layer, out);
    }
  }
  return out;
}

Reader::Encoded Reader::consolidated(std::string_view bytes, std::int64_t tokens,
                                     std::string_view codec, const KvPlan& plan) const {
  const auto numbers = plan.codec() ? plan.codec_name() : std::string(numbers_of(codec));
  if (plan.evict().empty()) {
    const auto to = (is_kept(codec) ? std::string(kKept) : "") + numbers;
    return {recode(bytes, tokens, codec, to), to};
  }
  const c10::InferenceMode inference;
  // The span alone, where it stood when it was computed.
  auto state = model_->model->start(1);
  use_plan(state, kv_plan(cutting(plan.chain()), *model_));
  state.positions[0] = prefix_tokens();
  place(state, decode(bytes, tokens, codec));
  finish_prompt(state);
  const auto to = std::string(kKept) + numbers;
  return {encode(state, 0, 0, tokens, to), to};
}

void Reader::place(State& state, const SpanState& span) const {
  const c10::InferenceMode inference;
  const auto position = state.positions.at(0);
  for (std::size_t layer = 0; auto* store : kv_stores(state))
    store->place(0, span.layers.at(layer++), position, model_->compute);
  state.positions[0] += span.tokens;
}

ReadAnswers Reader::answer(std::vector<State> states, std::string_view question,
                           std::int64_t max_tokens) const {
  const std::vector<std::string> same(states.size(), std::string(question));
  return answer(std::move(states), same, max_tokens);
}

std::vector<double> Reader::take_refusals(at::Tensor& logits, const State& state,
                                          Compute compute) const {
  const auto rows = logits.size(0);
  std::vector<double> refused(static_cast<std::size_t>(rows), 0.0);
  if (refusal_ids_.empty()) return refused;
  const auto first = refusal_ids_.front();
  const auto flat = logits.view({rows, -1});
  const auto begins = at::softmax(flat.to(at::kFloat), -1).select(-1, first).contiguous();
  const auto best = flat.argmax(-1);
  std::vector<bool> refuses(
      refused.size());  // what the row would say is the refusal as far as it was followed
  for (std::size_t row = 0; row < refused.size(); ++row) {
    refused[row] = begins[static_cast<std::int64_t>(row)].item<double>();
    refuses[row] = best[static_cast<std::int64_t>(row)].item<std::int64_t>() == first;
  }
  // "not" may begin "not found" or "not guilty": where it is what comes first, the rest decides.
  std::optional<State> ahead;
  for (std::size_t i = 1; i < refusal_ids_.size(); ++i) {
    if (std::find(refuses.begin(), refuses.end(), true) == refuses.end()) break;
    if (!ahead) ahead = state.fork();
    const std::vector<std::vector<std::int32_t>> ids(refused.size(), {refusal_ids_[i - 1]});
    const auto next = model_->model->forward(ragged(ids, compute, LogitsAt::last), *ahead)
                          .logits.view({rows, -1})
                          .to(at::kFloat);
    for (std::size_t row = 0; row < refused.size(); ++row) {
      if (!refuses[row]) continue;
      const auto of_row = next.select(0, static_cast<std::int64_t>(row));
      refused[row] *= at::softmax(of_row, -1)[refusal_ids_[i]].item<double>();
      refuses[row] = of_row.argmax().item<std::int64_t>() == refusal_ids_[i];
    }
  }
  for (std::size_t row = 0; row < refused.size(); ++row) {
    const bool begins_another =
        best[static_cast<std::int64_t>(row)].item<std::int64_t>() == first && !refuses[row];
    if (!begins_another)
      flat.select(0, static_cast<std::int64_t>(row))[first] = std::numeric_limits<float>::lowest();
  }
  return refused;
}

ReadAnswers Reader::answer(std::vector<State> states, std::span<const std::string> questions,
                           std::int64_t max_tokens) const {
  const c10::InferenceMode inference;
  MNEME_ASSERT(!states.empty() && states.size() == questions.size());
  ReadAnswers out;
  std::vector<std::vector<std::int32_t>> ids;
  for (const auto& question : questions) ids.push_back(question_ids(question));
  out.question_tokens = static_cast<std::int64_t>(ids.front().size());
  const auto started = std::chrono::steady_clock::now();
  auto state = joined(states);
  states.clear();
  // The fast path's rounding depends on the batch and makes jumps of the small differences that codecs leave: an answer
  // near a tie would change with them. The question and the answer are few tokens, so they run at 16 bits.
  const auto compute = model_->compute == Compute::automatic ? Compute::q16 : model_->compute;
  auto logits = model_->model->forward(ragged(ids, compute, LogitsAt::last), state).logits;
  const auto refused = take_refusals(logits, state, compute);
  out.first_token_seconds = seconds_since(started);
  const auto decoding = std::chrono::steady_clock::now();
  DecodeRowsOptions options;
  options.max_tokens = max_tokens;
  options.compute = compute;
  options.stops = [this](std::int32_t id, const std::string& bytes) {
    return bytes.find('\n') != std::string::npos || model_->tokenizer->is_special(id) ||
           (!prompt_.answer_ends_at.empty() && bytes.starts_with(prompt_.answer_ends_at));
  };
  for (const auto& row : decode::decode_rows(*model_, state, logits, options)) {
    ReadAnswer answer;
    std::string_view text = row.text;
    if (!prompt_.answer_ends_at.empty()) text = text.substr(0, text.find(prompt_.answer_ends_at));
    answer.text = text::trimmed(text);
    if (answer.text.ends_with('.')) answer.text.pop_back();
    answer.tokens = static_cast<std::int64_t>(row.ids.size());
    answer.ended = row.ended;
    answer.refused = refused[out.rows.size()];
    if (!row.log_probabilities.empty()) {
      answer.mean_log_probability =
          std::accumulate(row.log_probabilities.begin(), row.log_probabilities.end(), 0.0) /
          static_cast<double>(row.log_probabilities.size());
    }
    out.rows.push_back(std::move(answer));
  }
  out.decode_seconds = seconds_since(decoding);
  return out;
}

Reader::Stream::Stream(const Reader& reader, std::int64_t window)
    : reader_(reader), window_(window), state_(reader.prefix()) {
  MNEME_ASSERT(window > 0);
}

std::string Reader::Stream::next(std::span<const std::int32_t> ids) {
  const auto seen = [&] { return kv_stores(std::as_const(state_)).front()->seen(0); };
  const auto context = reader_.model_->model->shape().context,
             n = static_cast<std::int64_t>(ids.size());
  // Where the span is read a second time, that stands behind it.
  constexpr std::int64_t kRequest = 64;
  const bool reads_twice = reader_.cut_ && reader_.cut_->needs().reconstruction;
  if (context > 0 && state_.positions[0] + (reads_twice ? 2 * n + kRequest : n) > context) {
    // Positions start over: the window's entries are turned to the places right behind the prefix.
    const auto last = seen(), first = std::max(reader_.prefix_tokens(), last - window_);
    auto fresh = reader_.prefix();
    if (last > first) {
      SpanState window{last - first, {}};
      for (const auto* store : kv_stores(std::as_const(state_)))
        window.layers.push_back(store->read(0, first, last));
      reader_.place(fresh, window);
    }
    state_ = std::move(fresh);
  }
  return reader_.run_and_encode(state_, ids);
}

}  // namespace mneme
