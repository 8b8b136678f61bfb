#include "mneme/decode/batch.h"

#include "mneme/core/error.h"
#include "mneme/decode/sampler.h"
#include "mneme/models/prepare.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <fmt/format.h>
#include <numeric>

namespace mneme::decode {

std::function<bool(std::int32_t, const std::string&)> stops_at_line_feed(
    std::vector<std::int32_t> ids) {
  return [ids = std::move(ids)](std::int32_t id, const std::string& bytes) {
    return bytes.find('\n') != std::string::npos ||
           std::find(ids.begin(), ids.end(), id) != ids.end();
  };
}

std::vector<RowAnswer> decode_rows(const LanguageModel& model, State& state,
                                   const at::Tensor& first_logits,
                                   const DecodeRowsOptions& options) {
  const c10::NoGradGuard no_grad;
  if (first_logits.dim() != 2 || first_logits.size(0) != state.rows()) {
    throw Error(Errc::invalid,
                fmt::format("decoding {} rows wants logits [{},V], not {} dimensions of {}",
                            state.rows(), state.rows(), first_logits.dim(),
                            first_logits.dim() ? first_logits.size(0) : 0));
  }
  const auto& tokenizer = *model.tokenizer;
  const auto& ends = tokenizer.end_of_generation();
  const auto stops = [&](std::int32_t id) {
    if (options.stops) return options.stops(id, tokenizer.token_bytes(id));
    return std::find(ends.begin(), ends.end(), id) != ends.end();
  };
  const auto context = model.model->shape().context;
  std::vector<RowAnswer> out(static_cast<std::size_t>(first_logits.size(0)));
  if (options.max_tokens <= 0) return out;
  std::vector<std::size_t> speaking(
      out.size());  // the answer that each row of the State belongs to
  std::iota(speaking.begin(), speaking.end(), std::size_t{0});

  auto logits = first_logits;
  while (!speaking.empty()) {
    logits = logits.to(at::kCPU, at::kFloat).contiguous();
    const auto V = static_cast<std::size_t>(logits.size(1));
    std::vector<std::int64_t> rows;  // of the State, that go on
    std::vector<std::size_t> still_speaking;
    for (std::size_t row = 0; row < speaking.size(); ++row) {
      auto& answer = out[speaking[row]];
      const auto [id, log_probability] = most_likely({logits.const_data_ptr<float>() + row * V, V});
      answer.log_probabilities.push_back(log_probability);
      answer.ended = stops(id);
      if (answer.ended) continue;
      answer.ids.push_back(id);
      if (static_cast<std::int64_t>(answer.ids.size()) >= options.max_tokens) continue;
      if (context > 0 && !state.positions.empty() && state.positions[row] >= context &&
          !any_length(state, context))
        continue;
      rows.push_back(static_cast<std::int64_t>(row));
      still_speaking.push_back(speaking[row]);
    }
    if (rows.empty()) break;
    if (rows.size() < speaking.size()) state = state.select(rows);
    speaking = std::move(still_speaking);
    Batch batch;
    batch.ids = at::empty({static_cast<std::int64_t>(rows.size()), 1}, at::kLong);
    auto* ids = batch.ids.mutable_data_ptr<std::int64_t>();
    for (std::size_t row = 0; row < speaking.size(); ++row)
      ids[row] = out[speaking[row]].ids.back();
    batch.compute = options.compute.value_or(model.compute);
    logits = model.model->forward(batch, state).logits;
  }
  for (auto& answer : out) answer.text = tokenizer.decode(answer.ids, true);
  return out;
}

}  // namespace mneme::decode
