// PagedKv read again: what queries behind a text look at of it, where a plan scores by that.
//
//   a_gtn = softmax_n(scale q_gt . k_n)     n: entries of the tokens [begin, end) and of the first `sinks`, and what came
//   w_n   = max_gt a_gtn                    since and is visible; g: query heads of the head, t: queries that came since
#include "mneme/kv/paged_kv.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace mneme {

bool PagedKv::needs_reconstruction() const { return plan_ && plan_->needs().reconstruction; }

void PagedKv::watch(std::int64_t begin, std::int64_t end, std::int64_t sinks) {
  std::int64_t seen = 0;
  for (const auto& row : rows_) seen = std::max(seen, row.seen);
  watched_ = Watched{begin, end, std::min(sinks, begin), seen};
}

void PagedKv::take_watched(const PagedKv& fork) {
  for (std::size_t b = 0; b < rows_.size(); ++b) {
    for (std::size_t h = 0; h < rows_[b].heads.size(); ++h)
      rows_[b].heads[h].again = fork.rows_[b].heads[h].again;
    rows_[b].read_again = rows_[b].seen;
  }
  observe_seconds_ = fork.observe_seconds_;
}

void PagedKv::note_watched(Row& row, const float* queries, const std::int64_t* positions,
                           std::int64_t n, const Pattern& pattern) const {
  constexpr std::int64_t kScores = 1 << 21;  // of so many queries at once
  constexpr float kNone = std::numeric_limits<float>::quiet_NaN();
  const auto q = at::from_blob(const_cast<float*>(queries), {n, shape_.heads, group_, shape_.key});
  const auto of_queries = at::from_blob(const_cast<std::int64_t*>(positions), {n, 1}, at::kLong);
  for (std::int64_t h = 0; h < shape_.heads; ++h) {
    auto& head = row.heads[static_cast<std::size_t>(h)];
    std::vector<std::int64_t> places, stand;
    std::int64_t lead = 0, watched = 0, place = 0;
    for (const auto& run : head.runs) {
      for (auto i = run.begin; i < run.begin + run.count; ++i, ++place) {
        const auto token = run.page->indices[static_cast<std::size_t>(i)];
        const bool is_watched = token >= watched_->begin && token < watched_->end;
        if (!is_watched && token >= watched_->sinks && token < watched_->seen) continue;
        lead += token < watched_->sinks ? 1 : 0;
        watched += is_watched ? 1 : 0;
        places.push_back(place);
        stand.push_back(run.page->positions[static_cast<std::size_t>(i)]);
      }
    }
    if (watched == 0) continue;
    const auto M = static_cast<std::int64_t>(places.size());
    const auto keys = gathered(head).first.index_select(0, at::tensor(places, at::kLong)).t();
    const auto before = of_queries - at::tensor(stand, at::kLong);  // [n,M]
    auto unseen = at::zeros({n, M}, at::kBool);
    if (pattern.causal) unseen = unseen.logical_or(before < 0);
    if (pattern.window > 0) unseen = unseen.logical_or(before >= pattern.window);
    auto most = at::zeros({watched});
    const auto step = std::max<std::int64_t>(1, kScores / (group_ * M));
    for (std::int64_t t = 0; t < n; t += step) {
      const auto m = std::min(step, n - t);
      const auto scores = at::matmul(q.narrow(0, t, m).select(1, h).reshape({m * group_, -1}), keys)
                              .mul_(scale_)
                              .view({m, group_, M})
                              .masked_fill_(unseen.narrow(0, t, m).unsqueeze(1),
                                            -std::numeric_limits<double>::infinity());
      most = at::maximum(most, scores.softmax(2).narrow(2, lead, watched).amax({0, 1}));
    }
    head.again.resize(static_cast<std::size_t>(place), kNone);
    const auto* from = most.const_data_ptr<float>();
    for (std::int64_t i = 0; i < watched; ++i) {
      auto& noted =
          head.again[static_cast<std::size_t>(places[static_cast<std::size_t>(lead + i)])];
      noted = std::fmax(noted, from[i]);  // the other where one is NaN
    }
  }
}

}  // namespace mneme
