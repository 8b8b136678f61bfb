#include "mneme/mixers/attention/partial.h"

#include "mneme/core/error.h"

#include <ATen/ATen.h>

#include <limits>

namespace mneme {

Partial merge(const std::vector<Partial>& parts) {
  MNEME_ASSERT(!parts.empty());
  if (parts.size() == 1) return parts.front();
  std::vector<at::Tensor> lses;
  for (const auto& part : parts) lses.push_back(part.lse);
  const auto lse = at::logsumexp(at::stack(lses), 0);
  at::Tensor out;
  for (const auto& part : parts) {
    // Nothing visible anywhere leaves -inf - -inf: such rows weigh nothing.
    const auto weight =
        at::nan_to_num(at::exp(part.lse - lse), 0.0).unsqueeze(-1).to(part.out.scalar_type());
    out = out.defined() ? out + weight * part.out : weight * part.out;
  }
  return {out, lse};
}

namespace {

/// [B,H or 1,T,N] bool: which entries each query sees.
at::Tensor visible_entries(const at::Tensor& q_positions, const at::Tensor& q_segments,
                           const Entries& entries, const Pattern& pattern,
                           const at::Tensor& segment_sees) {
  const auto B = q_positions.size(0), T = q_positions.size(1), N = entries.keys.size(2);
  const auto at_query = q_positions.view({B, 1, T, 1});
  const auto at_entry = entries.positions.unsqueeze(2);  // [B,H or 1,1,N]
  auto visible =
      at::ones({1, 1, 1, N}, at::TensorOptions().dtype(at::kBool).device(entries.keys.device()));
  if (pattern.causal) visible = visible & (at_entry <= at_query);
  if (pattern.window > 0) visible = visible & (at_query - at_entry < pattern.window);
  if (pattern.by_segment) {
    if (!entries.segments.defined() || !q_segments.defined())
      throw Error(Errc::invalid, "a pattern by segment wants segment ids for queries and entries");
    const auto of_entry = entries.segments.unsqueeze(2), of_query = q_segments.view({B, 1, T, 1});
    if (segment_sees.defined()) {
      const auto S = segment_sees.size(1);
      // Entries without a segment are seen by none.
      const auto pair = of_query * S + of_entry.clamp_min(0);  // [B,H or 1,T,N]
      const auto seen =
          segment_sees.reshape({B, S * S}).gather(1, pair.reshape({B, -1})).view(pair.sizes());
      visible = visible & seen & (of_entry >= 0);
    } else {
      visible = visible & (of_entry == of_query);
    }
  }
  if (entries.valid.defined()) visible = visible & entries.valid.unsqueeze(2);
  return visible;
}

}  // namespace

Partial attend_plain(const at::Tensor& q, const at::Tensor& q_positions,
                     const at::Tensor& q_segments, const Entries& entries, const Pattern& pattern,
                     double scale, const at::Tensor& segment_sees) {
  const auto B = q.size(0), Hq = q.size(1), T = q.size(2), H = entries.keys.size(1),
             N = entries.keys.size(2), G = Hq / H;
  const auto grouped = q.reshape({B, H, G * T, q.size(3)});
  auto logits = at::matmul(grouped, entries.keys.transpose(-1, -2)).view({B, H, G, T, N}) * scale;
  const auto visible =
      visible_entries(q_positions, q_segments, entries, pattern, segment_sees).unsqueeze(2);
  if (entries.log_mass.defined()) logits = logits + entries.log_mass.unsqueeze(2).unsqueeze(3);
  logits = logits.masked_fill(~visible, -std::numeric_limits<double>::infinity());
  const auto lse = at::logsumexp(logits, -1);  // [B,H,G,T]
  const auto safe = lse.masked_fill(at::isinf(lse), 0.0);
  const auto weights = at::exp(logits - safe.unsqueeze(-1)).masked_fill(~visible, 0.0);
  const auto out = at::matmul(weights.view({B, H, G * T, N}), entries.values);
  return {out.view({B, Hq, T, entries.values.size(3)}), lse.view({B, Hq, T})};
}

Partial attend_blockwise(const at::Tensor& q, const at::Tensor& q_positions,
                         const at::Tensor& q_segments, const Entries& entries,
                         const Pattern& pattern, double scale, const at::Tensor& segment_sees) {
  MNEME_ASSERT(!entries.log_mass.defined());
  const auto B = q.size(0), Hq = q.size(1), T = q.size(2), H = entries.keys.size(1),
             N = entries.keys.size(2);
  auto visible = visible_entries(q_positions, q_segments, entries, pattern, segment_sees)
                     .expand({B, -1, T, N});
  // A query that sees nothing would divide by zero: it looks at everything, and what it finds is dropped.
  const auto blind = visible.any(-1, true).logical_not();
  const bool some_blind = blind.any().item<bool>();
  if (some_blind) visible = visible | blind;
  if (visible.size(1) > 1) visible = visible.repeat_interleave(Hq / H, 1);
  auto out = at::scaled_dot_product_attention(q, entries.keys, entries.values, visible, 0.0, false,
                                              scale, Hq != H);
  if (some_blind)
    out = out.masked_fill(blind.size(1) > 1 ? blind.repeat_interleave(Hq / H, 1) : blind, 0.0);
  return {std::move(out), {}};
}

}  // namespace mneme
