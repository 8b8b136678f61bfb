#include "mneme/probes/parallel_context.h"

#include "mneme/core/error.h"
#include "mneme/core/taps.h"
#include "mneme/kernels/attend.h"
#include "mneme/kv/plan.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>
#include <fmt/format.h>
#include <numeric>

namespace mneme {
namespace {

// Tokens of windows that run as rows of one pass.
constexpr std::int64_t kPassTokens = 4096;

/// ids [rows,T], rows of like length padded at their end.
Batch rows_of(std::span<const std::vector<std::int32_t>> rows, Compute compute) {
  Batch out;
  std::size_t T = 0;
  for (const auto& row : rows) T = std::max(T, row.size());
  out.ids =
      at::zeros({static_cast<std::int64_t>(rows.size()), static_cast<std::int64_t>(T)}, at::kLong);
  bool equal = true;
  for (std::size_t b = 0; b < rows.size(); ++b) {
    std::copy(rows[b].begin(), rows[b].end(),
              out.ids[static_cast<std::int64_t>(b)].mutable_data_ptr<std::int64_t>());
    out.lengths.push_back(static_cast<std::int64_t>(rows[b].size()));
    equal = equal && rows[b].size() == T;
  }
  if (equal) out.lengths.clear();
  out.logits_at = LogitsAt::none;
  out.compute = compute;
  return out;
}

at::Tensor positions_from(std::int64_t first, std::int64_t n) {
  return at::arange(first, first + n, at::kLong);
}

/// What the queries of a layer look at: the prefix, windows and the query's own keys, turned, in this order.
struct SeenKeys {
  std::vector<at::Tensor> keys, positions;

  void add(const at::Tensor& k, const at::Tensor& at) {
    if (k.size(1) == 0) return;
    keys.push_back(k);
    positions.push_back(at);
  }
  [[nodiscard]] at::Tensor all_keys() const { return at::cat(keys, 1).contiguous(); }
  [[nodiscard]] at::Tensor all_positions() const { return at::cat(positions).contiguous(); }
};

/// Weights [Hq,T,N] of queries over keys that they may see.
at::Tensor attention_weights(const at::Tensor& queries, const at::Tensor& query_positions,
                             const SeenKeys& seen) {
  const auto keys = seen.all_keys(), places = seen.all_positions();
  const auto Hq = queries.size(0), H = keys.size(0), T = queries.size(1), N = keys.size(1),
             d = keys.size(2);
  auto scores = at::bmm(queries.reshape({H, Hq / H * T, d}), keys.transpose(1, 2)).view({Hq, T, N});
  scores.div_(std::sqrt(static_cast<double>(d)));
  const auto behind = places.unsqueeze(0) > query_positions.unsqueeze(1);  // [T,N]
  return scores.masked_fill_(behind.unsqueeze(0), -std::numeric_limits<float>::infinity())
      .softmax(-1);
}

}  // namespace

at::Tensor attention_entropy(const at::Tensor& queries, const at::Tensor& query_positions,
                             const at::Tensor& keys, const at::Tensor& key_positions) {
  const auto q = queries.to(at::kFloat).contiguous(), k = keys.to(at::kFloat).contiguous();
  const auto at_q = query_positions.contiguous(), at_k = key_positions.contiguous();
  const auto Hq = q.size(0), T = q.size(1), H = k.size(0), N = k.size(1), d = k.size(2);
  const auto group = Hq / H;
  const double scale = 1.0 / std::sqrt(static_cast<double>(d));
  auto read = at::empty({Hq, T, d}), lse = at::empty({Hq, T});
  std::vector<std::vector<kernels::PageView>> pages(static_cast<std::size_t>(H));
  std::vector<kernels::AttendTask> tasks;
  for (std::int64_t h = 0; h < H; ++h) {
    auto& own = pages[static_cast<std::size_t>(h)];
    for (std::int64_t i = 0; i < N; i += kernels::kPageEntries) {
      const auto* numbers = k.const_data_ptr<float>() + (h * N + i) * d;
      own.push_back({numbers, numbers, at_k.const_data_ptr<std::int64_t>() + i, nullptr,
                     static_cast<std::int32_t>(std::min(kernels::kPageEntries, N - i)),
                     kernels::KvType::f32});
    }
    tasks.push_back({q.const_data_ptr<float>() + h * group * T * d, group, T, T * d, d,
                     at_q.const_data_ptr<std::int64_t>(), own,
                     read.mutable_data_ptr<float>() + h * group * T * d, T * d, d,
                     lse.mutable_data_ptr<float>() + h * group * T});
  }
  kernels::attend(tasks, d, static_cast<float>(scale), {}, kernels::Products::f32);
  // Two terms of like size: their difference is small where a head looks at one entry alone.
  const auto mean_score = (q.to(at::kDouble) * read.to(at::kDouble)).sum(-1) * scale;
  return at::where(at::isinf(lse), at::zeros_like(mean_score), lse.to(at::kDouble) - mean_score)
      .clamp_min_(0)
      .to(at::kFloat);
}

std::vector<std::int64_t> select_groups(const at::Tensor& weights, std::int64_t first,
                                        std::span<const std::int64_t> sizes, std::int64_t K,
                                        std::int64_t most) {
  std::vector<double> score;
  for (const auto n : sizes) {
    const auto group = weights.narrow(-1, first, n);
    score.push_back(std::get<0>(group.topk(std::min(most, n), -1)).sum(at::kDouble).item<double>());
    first += n;
  }
  std::vector<std::int64_t> out(score.size());
  std::iota(out.begin(), out.end(), std::int64_t{0});
  std::stable_sort(out.begin(), out.end(), [&](auto a, auto b) {
    return score[static_cast<std::size_t>(a)] > score[static_cast<std::size_t>(b)];
  });
  if (K < static_cast<std::int64_t>(out.size())) out.resize(static_cast<std::size_t>(K));
  std::sort(out.begin(), out.end());
  return out;
}

std::vector<std::vector<std::int32_t>> cut_into_windows(std::span<const std::int32_t> ids,
                                                        std::int64_t P) {
  const auto n = static_cast<std::int64_t>(ids.size());
  if (P < 1 || P > n)
    throw Error(Errc::invalid, fmt::format("{} tokens cannot be cut into {} windows", n, P));
  std::vector<std::vector<std::int32_t>> out;
  for (std::int64_t w = 0, begin = 0; w < P; ++w) {
    const auto size = n / P + (w < n % P ? 1 : 0);
    const auto part = ids.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(size));
    out.emplace_back(part.begin(), part.end());
    begin += size;
  }
  return out;
}

ParallelContext::ParallelContext(const LanguageModel& model, std::span<const std::int32_t> prefix)
    : model_(model), shape_(attention_of(model)) {
  const c10::InferenceMode inference;
  prefix_ = model.model->start(1);
  const auto n = static_cast<std::int64_t>(prefix.size());
  if (n > 0) {
    const std::vector<std::vector<std::int32_t>> row{{prefix.begin(), prefix.end()}};
    static_cast<void>(model.model->forward(rows_of(row, model.compute), prefix_));
  }
  for (const auto* store : kv_stores(std::as_const(prefix_)))
    prefix_keys_.push_back(turned(shape_, store->read(0, 0, n).keys, positions_from(0, n)));
}

std::vector<EncodedWindow> ParallelContext::encode(
    std::span<const std::vector<std::int32_t>> windows) const {
  const c10::InferenceMode inference;
  const auto before = prefix_tokens();
  std::vector<EncodedWindow> out;
  for (const auto& window : windows) {
    if (window.empty()) throw Error(Errc::invalid, "a window of no tokens cannot be encoded");
  }
  while (out.size() < windows.size()) {
    const auto first = out.size();
    std::size_t rows = 1, longest = windows[first].size();
    while (first + rows < windows.size()) {
      const auto T = std::max(longest, windows[first + rows].size());
      if (static_cast<std::int64_t>(T * (rows + 1)) > kPassTokens) break;
      longest = T;
      ++rows;
    }
    const auto pass = windows.subspan(first, rows);
    auto state = prefix_.select(std::vector<std::int64_t>(rows, 0));
    static_cast<void>(model_.model->forward(rows_of(pass, model_.compute), state));
    const auto stores = kv_stores(std::as_const(state));
    for (std::size_t b = 0; b < rows; ++b) {
      EncodedWindow window{static_cast<std::int64_t>(pass[b].size()), {}};
      for (const auto* store : stores)
        window.layers.push_back(
            store->read(static_cast<std::int64_t>(b), before, before + window.tokens));
      out.push_back(std::move(window));
    }
  }
  return out;
}

ParallelReading ParallelContext::read(std::span<const EncodedWindow> windows,
                                      std::span<const std::int32_t> query, std::int64_t select,
                                      LogitsAt at) const {
  const c10::InferenceMode inference;
  if (query.empty()) throw Error(Errc::invalid, "a query of no tokens cannot be read");
  const auto before = prefix_tokens(), T = static_cast<std::int64_t>(query.size());
  std::vector<std::int64_t> all(windows.size()), sizes;
  std::iota(all.begin(), all.end(), std::int64_t{0});
  std::int64_t longest = 0;
  for (const auto& window : windows) {
    sizes.push_back(window.tokens);
    longest = std::max(longest, window.tokens);
  }
  ParallelReading out;
  out.state = prefix_.fork();
  out.state.positions[0] = before + longest;
  out.entropy = at::empty({shape_.layers, shape_.heads, T});
  out.chosen.assign(static_cast<std::size_t>(shape_.layers), all);
  const auto rows = positions_from(before + longest, T);
  const auto stores = kv_stores(out.state);
  // A layer's windows are known once its queries are: they are placed before the layer takes in the query's own keys.
  std::size_t layer = 0;
  at::Tensor queries;
  Taps taps;
  taps.add("layers.*.attn.q", [&](std::string_view, const at::Tensor& q) {
    queries = turned(shape_, q[0], rows);
    return q;
  });
  taps.add("layers.*.attn.k", [&](std::string_view, const at::Tensor& k) {
    const auto own = turned(shape_, k[0], rows);
    const auto seen_of = [&](const std::vector<std::int64_t>& some) {
      SeenKeys seen;
      seen.add(prefix_keys_[layer], positions_from(0, before));
      for (const auto w : some) {
        const auto& window = windows[static_cast<std::size_t>(w)];
        const auto places = positions_from(before, window.tokens);
        seen.add(turned(shape_, window.layers[layer].keys, places), places);
      }
      seen.add(own, rows);
      return seen;
    };
    auto& chosen = out.chosen[layer];
    if (select > 0 && select < static_cast<std::int64_t>(windows.size()))
      chosen = select_groups(attention_weights(queries, rows, seen_of(all)), before, sizes, select);
    const auto seen = seen_of(chosen);
    out.entropy[static_cast<std::int64_t>(layer)] =
        attention_entropy(queries, rows, seen.all_keys(), seen.all_positions());
    for (const auto w : chosen)
      stores[layer]->place(0, windows[static_cast<std::size_t>(w)].layers[layer], before,
                           model_.compute);
    ++layer;
    return k;
  });
  const std::vector<std::vector<std::int32_t>> row{{query.begin(), query.end()}};
  auto batch = rows_of(row, model_.compute);
  batch.logits_at = at;
  batch.taps = &taps;
  out.logits = model_.model->forward(batch, out.state).logits;
  return out;
}

}  // namespace mneme
