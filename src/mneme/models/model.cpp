#include "mneme/models/model.h"

#include "mneme/core/error.h"
#include "mneme/kv/plan.h"
#include "mneme/models/prepare.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <fmt/format.h>
#include <numeric>

namespace mneme {

void Model::set_feed_forward(std::int64_t, std::shared_ptr<const FeedForward>) {
  throw Error(Errc::unsupported, "this model has no feed-forward layers to replace");
}

bool any_length(const State& state, std::int64_t context) {
  const auto stores = kv_stores(state);
  return !stores.empty() && std::all_of(stores.begin(), stores.end(), [&](const KvStore* store) {
    const auto farthest = store->farthest();
    return farthest && (context <= 0 || *farthest <= context);
  });
}

Prepared prepare(const Batch& batch, const State& state, const Model& model) {
  const auto& input = batch.ids.defined() ? batch.ids : batch.embeddings;
  if (!input.defined()) throw Error(Errc::invalid, "a batch wants ids or embeddings");
  if (batch.ids.defined() && batch.embeddings.defined())
    throw Error(Errc::invalid, "a batch wants ids or embeddings, not both");
  if (input.dim() != (batch.ids.defined() ? 2 : 3)) {
    throw Error(Errc::invalid,
                fmt::format("a batch wants ids [B,T] or embeddings [B,T,D], not {} dimensions",
                            input.dim()));
  }
  if (batch.embeddings.defined() && batch.embeddings.size(2) != model.shape().model) {
    throw Error(Errc::invalid, fmt::format("embeddings of width {} for a model of width {}",
                                           batch.embeddings.size(2), model.shape().model));
  }
  const auto B = input.size(0), T = input.size(1);
  if (T == 0) throw Error(Errc::invalid, "a batch of no tokens: at least one is wanted");
  if (state.rows() != 0 && state.rows() != B)
    throw Error(Errc::invalid,
                fmt::format("the state holds {} sequences, the batch {}", state.rows(), B));
  Prepared out;
  out.B = B;
  out.T = T;
  auto& call = out.call;
  call.lengths = batch.lengths;
  if (!call.lengths.empty()) {
    if (static_cast<std::int64_t>(call.lengths.size()) != B)
      throw Error(Errc::invalid,
                  fmt::format("a batch of {} rows was given {} lengths", B, call.lengths.size()));
    for (auto n : call.lengths) {
      if (n < 0 || n > T)
        throw Error(Errc::invalid, fmt::format("a row of {} tokens in a batch of {}", n, T));
    }
  }
  if (batch.positions.defined()) {
    if (batch.positions.sizes() != at::IntArrayRef({B, T}))
      throw Error(Errc::invalid, "positions want the sizes [B,T] of the batch");
    call.positions = batch.positions.to(at::kLong).contiguous();
  } else {
    call.positions = at::empty({B, T}, at::kLong);
    auto* positions = call.positions.mutable_data_ptr<std::int64_t>();
    for (std::int64_t b = 0; b < B; ++b) {
      const auto first = state.positions.empty() ? 0 : state.positions[static_cast<std::size_t>(b)];
      std::iota(positions + b * T, positions + (b + 1) * T, first);
    }
  }
  if (batch.ids.defined()) call.ids = batch.ids;
  if (batch.segments.defined() && batch.segments.sizes() != at::IntArrayRef({B, T}))
    throw Error(Errc::invalid, "segments want the sizes [B,T] of the batch");
  if (const auto context = model.shape().context; context > 0) {
    for (std::int64_t b = 0; b < B; ++b) {
      const auto n = call.length(b, T);
      const auto last = n == 0 ? 0 : call.positions.const_data_ptr<std::int64_t>()[b * T + n - 1];
      if (last >= context && !any_length(state, context))
        throw Error(Errc::full, fmt::format("position {} is past the model's context of {} tokens",
                                            last, context));
    }
  }
  if (batch.segment_sees.defined()) {
    const auto& sees = batch.segment_sees;
    if (!batch.segments.defined() || sees.scalar_type() != at::kBool || sees.dim() != 3 ||
        sees.size(0) != B || sees.size(1) != sees.size(2)) {
      throw Error(Errc::invalid,
                  "which segments see which wants segments, and a bool tensor [B,S,S]");
    }
    const auto largest = batch.segments.max().item<std::int64_t>(),
               smallest = batch.segments.min().item<std::int64_t>();
    if (smallest < 0 || largest >= sees.size(1)) {
      throw Error(Errc::invalid, fmt::format("segments {} to {} where visibility is given for {}",
                                             smallest, largest, sees.size(1)));
    }
  }
  if ((batch.logits_at == LogitsAt::chosen) != batch.chosen.defined())
    throw Error(Errc::invalid, "chosen tokens go with LogitsAt::chosen");
  call.pattern = batch.pattern;
  call.segments = batch.segments;
  call.segment_sees = batch.segment_sees;
  call.mode = batch.mode;
  call.compute = batch.compute;
  call.taps = batch.taps;
  call.cost = batch.cost;
  return out;
}

void advance(State& state, const Prepared& prepared) {
  if (state.positions.empty()) state.positions.assign(static_cast<std::size_t>(prepared.B), 0);
  const auto* positions = prepared.call.positions.const_data_ptr<std::int64_t>();
  for (std::int64_t b = 0; b < prepared.B; ++b) {
    const auto n = prepared.call.length(b, prepared.T);
    if (n > 0) state.positions[static_cast<std::size_t>(b)] = positions[b * prepared.T + n - 1] + 1;
  }
}

at::Tensor last_of_rows(const at::Tensor& hidden, const Call& call) {
  const auto B = hidden.size(0), T = hidden.size(1);
  if (call.lengths.empty()) return hidden.select(1, T - 1);
  std::vector<at::Tensor> rows;
  for (std::int64_t b = 0; b < B; ++b)
    rows.push_back(hidden[b][std::max<std::int64_t>(0, call.length(b, T) - 1)]);
  return at::stack(rows);
}

}  // namespace mneme
