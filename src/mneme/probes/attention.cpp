#include "mneme/probes/attention.h"

#include "mneme/core/error.h"
#include "mneme/core/progress.h"
#include "mneme/core/taps.h"
#include "mneme/kv/plan.h"
#include "mneme/mixers/kv_store.h"
#include "mneme/models/model.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fmt/format.h>
#include <limits>
#include <utility>

namespace mneme {
namespace {

// Fewer vectors than a head is wide would leave directions open.
constexpr std::int64_t kLeastTokens = 64;
constexpr std::int64_t kPiece = 512;

/// The layer in "layers.12.attn.q".
std::int64_t layer_of(std::string_view name) {
  std::int64_t out = 0;
  const auto text = name.substr(std::string_view("layers.").size());
  std::from_chars(text.data(), text.data() + text.size(), out);
  return out;
}

}  // namespace

AttentionShape attention_of(const LanguageModel& model) {
  const c10::InferenceMode inference;
  auto state = model.model->start(1);
  const auto stores = kv_stores(std::as_const(state));
  AttentionShape out;
  out.layers = model.model->shape().layers;
  // How many heads ask is seen from what one token asks.
  Taps taps;
  taps.add("layers.0.attn.q", [&](std::string_view, const at::Tensor& q) {
    out.heads = q.size(1);
    return q;
  });
  if (static_cast<std::int64_t>(stores.size()) == out.layers) {
    out.kv_heads = stores.front()->shape().heads;
    out.width = stores.front()->shape().key;
    out.rope = stores.front()->shape().rope;
    Batch batch;
    batch.ids = at::zeros({1, 1}, at::kLong);
    batch.logits_at = LogitsAt::none;
    batch.to_layer = 1;
    batch.taps = &taps;
    (void)model.model->forward(batch, state);
  }
  if (out.heads == 0) {
    throw Error(Errc::unsupported,
                fmt::format("{}: has layers without softmax attention: there are "
                            "no heads of it to measure",
                            model.name));
  }
  return out;
}

void watch_attention(const LanguageModel& model, const std::vector<std::int32_t>& ids,
                     std::int64_t piece, const std::function<void(std::int64_t n)>& before,
                     const SeeAttention& see) {
  const c10::InferenceMode inference;
  auto state = model.model->start(1);
  std::int64_t first = 0;
  at::Tensor queries;
  Taps taps;
  taps.add("layers.*.attn.q", [&](std::string_view, const at::Tensor& q) { return queries = q; });
  taps.add("layers.*.attn.k", [&](std::string_view name, const at::Tensor& k) {
    see(layer_of(name), first, queries[0], k[0]);
    return k;
  });
  const auto T = static_cast<std::int64_t>(ids.size());
  const auto all = at::tensor(at::ArrayRef<std::int32_t>(ids), at::kInt).to(at::kLong);
  for (; first < T; first += piece) {
    const auto n = std::min(piece, T - first);
    before(n);
    Batch batch;
    batch.ids = all.narrow(0, first, n).unsqueeze(0);
    batch.logits_at = LogitsAt::none;
    batch.compute = model.compute;
    batch.taps = &taps;
    (void)model.model->forward(batch, state);
  }
}

at::Tensor turned(const AttentionShape& shape, const at::Tensor& vectors,
                  const at::Tensor& positions) {
  if (!shape.rope) return vectors;
  return (*shape.rope)(vectors.unsqueeze(0), positions.unsqueeze(0)).squeeze(0);
}

at::Tensor attention_logits(const at::Tensor& queries, const at::Tensor& keys,
                            const at::Tensor& at) {
  const auto Hq = queries.size(0), H = keys.size(0), n = queries.size(1), T = keys.size(1),
             d = keys.size(2);
  const auto grouped = queries.reshape({H, Hq / H * n, d});
  auto out = at::bmm(grouped, keys.transpose(1, 2)).view({Hq, n, T});
  out.div_(std::sqrt(static_cast<double>(d)));
  const auto behind = at::arange(T, at::kLong).unsqueeze(0) > at.unsqueeze(1);  // [n,T]
  return out.masked_fill_(behind.unsqueeze(0), -std::numeric_limits<float>::infinity());
}

std::vector<std::int32_t> beginning(const LanguageModel& model, const CalibrationText& text,
                                    std::int64_t least, std::int64_t most) {
  if (const auto context = model.model->shape().context; context > 0)
    most = std::min(most, context);
  // No token of a text is more than a few bytes on average: what lies far behind need not be cut into tokens.
  const std::string_view whole = text.text;
  auto bytes = std::min(whole.size(), static_cast<std::size_t>(most) * 16);
  while (bytes > 0 && bytes < whole.size() && (whole[bytes] & 0xC0) == 0x80) --bytes;
  auto ids = model.tokenizer->encode(whole.substr(0, bytes));
  if (static_cast<std::int64_t>(ids.size()) > most) ids.resize(static_cast<std::size_t>(most));
  if (static_cast<std::int64_t>(ids.size()) < least) {
    throw Error(Errc::invalid,
                fmt::format("{}: has {} tokens and at least {} are wanted to measure "
                            "on: give a longer text",
                            text.name, ids.size(), least));
  }
  return ids;
}

TextSeen watch_text(
    const LanguageModel& model, const CalibrationText& text, std::string what, std::int64_t tokens,
    std::int64_t positions, const std::function<void()>& between,
    const std::function<void(std::int64_t layer, const at::Tensor& positions,
                             const at::Tensor& queries, const at::Tensor& keys)>& see) {
  const auto ids = beginning(model, text, kLeastTokens, tokens);
  const auto T = static_cast<std::int64_t>(ids.size());
  const TextSeen seen{T, std::max(positions, T)};
  Progress progress("measuring " + std::move(what), T, "tokens");
  watch_attention(
      model, ids, kPiece,
      [&](std::int64_t n) {
        between();
        progress.advance(n);
      },
      [&](std::int64_t layer, std::int64_t first, const at::Tensor& queries,
          const at::Tensor& keys) {
        const auto places = at::arange(first, first + keys.size(1), at::kLong);
        see(layer, at::floor_divide(places * seen.positions, T), queries, keys);
      });
  progress.finish();
  return seen;
}

std::vector<double> per_layer(const at::Tensor& figures) {
  const auto numbers = figures.to(at::kDouble).contiguous();
  const auto* first = numbers.const_data_ptr<double>();
  return {first, first + numbers.numel()};
}

double median_of(const at::Tensor& numbers) {
  return numbers.to(at::kDouble).flatten().quantile(0.5).item<double>();
}

}  // namespace mneme
