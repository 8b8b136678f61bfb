#include "mneme/mixers/attention/partial.h"

#include <ATen/ATen.h>

#include <limits>

#include "mneme/core/error.h"

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
    const auto weight = at::nan_to_num(at::exp(part.lse - lse), 0.0).unsqueeze(-1).to(part.out.scalar_type());
    out = out.defined() ? out + weight * part.out : weight * part.out;
  }
  return {out, lse};
}

Partial attend_plain(const at::Tensor& q, const at::Tensor& q_positions, const at::Tensor& q_segments, const Entries& entries,
                     const Pattern& pattern, double scale) {
  const auto B = q.size(0), Hq = q.size(1), T = q.size(2), H = entries.keys.size(1), N = entries.keys.size(2), G = Hq / H;
  const auto grouped = q.reshape({B, H, G * T, q.size(3)});
  auto logits = at::matmul(grouped, entries.keys.transpose(-1, -2)).view({B, H, G, T, N}) * scale;
  const auto at_query = q_positions.view({B, 1, 1, T, 1});
  const auto at_entry = entries.positions.unsqueeze(2).unsqueeze(3);  // [B,H or 1,1,1,N]
  auto visible = at::ones({1, 1, 1, 1, N}, at::TensorOptions().dtype(at::kBool).device(q.device()));
  if (pattern.causal) visible = visible & (at_entry <= at_query);
  if (pattern.window > 0) visible = visible & (at_query - at_entry < pattern.window);
  if (pattern.by_segment) {
    if (!entries.segments.defined() || !q_segments.defined()) throw Error(Errc::invalid, "a pattern by segment wants segment ids for queries and entries");
    visible = visible & (entries.segments.unsqueeze(2).unsqueeze(3) == q_segments.view({B, 1, 1, T, 1}));
  }
  if (entries.valid.defined()) visible = visible & entries.valid.unsqueeze(2).unsqueeze(3);
  if (entries.log_mass.defined()) logits = logits + entries.log_mass.unsqueeze(2).unsqueeze(3);
  logits = logits.masked_fill(~visible, -std::numeric_limits<double>::infinity());
  const auto lse = at::logsumexp(logits, -1);  // [B,H,G,T]
  const auto safe = lse.masked_fill(at::isinf(lse), 0.0);
  const auto weights = at::exp(logits - safe.unsqueeze(-1)).masked_fill(~visible, 0.0);
  const auto out = at::matmul(weights.view({B, H, G * T, N}), entries.values);
  return {out.view({B, Hq, T, entries.values.size(3)}), lse.view({B, Hq, T})};
}

}  // namespace mneme
