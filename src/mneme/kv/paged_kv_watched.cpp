// PagedKv read again: what queries behind a text look at of it, where a plan scores by that.
//
//   a_gtn = softmax_n(scale q_gt . k_n)     n: entries of the tokens [begin, end) and of the first `sinks`, and what came
//   w_n   = max_gt a_gtn                    since and is visible; g: query heads of the head, t: queries that came since
#include "mneme/kernels/observe.h"
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

void PagedKv::note_watched(Row& row, const float* queries, const float* lse,
                           const std::int64_t* positions, std::int64_t n, const Call& call) const {
  constexpr float kNone = std::numeric_limits<float>::quiet_NaN();
  const auto d = shape_.key, stride = shape_.heads * group_ * d;
  struct Looked {
    Head part;                         // what the softmax runs over
    std::vector<std::int64_t> places;  // of the watched entries in the head
    std::int64_t lead = 0;             // entries of the part before them
    std::vector<float> lse, most;
  };
  std::vector<Looked> looked(static_cast<std::size_t>(shape_.heads));
  std::vector<kernels::AttendTask> apart;  // heads whose softmax leaves entries out
  std::vector<kernels::ObserveTask> tasks;
  Decoded decoded;
  for (std::int64_t h = 0; h < shape_.heads; ++h) {
    const auto& head = row.heads[static_cast<std::size_t>(h)];
    auto& look = looked[static_cast<std::size_t>(h)];
    std::int64_t place = 0;
    for (const auto& run : head.runs) {
      std::int32_t begin = run.begin, count = 0;
      const auto close = [&] {
        if (count > 0) look.part.runs.push_back({run.page, begin, count});
        count = 0;
      };
      for (auto i = run.begin; i < run.begin + run.count; ++i, ++place) {
        const auto token = run.page->indices[static_cast<std::size_t>(i)];
        const bool watched = token >= watched_->begin && token < watched_->end;
        if (!watched && token >= watched_->sinks && token < watched_->seen) {
          close();
          continue;
        }
        if (count++ == 0) begin = i;
        look.lead += token < watched_->sinks ? 1 : 0;
        if (watched) look.places.push_back(place);
      }
      close();
    }
    if (look.places.empty()) continue;
    refresh(look.part, 0);
    const auto all = look.part.entries();
    look.most.resize(static_cast<std::size_t>(group_ * all));
    kernels::ObserveTask task{};
    task.q = queries + h * group_ * d;
    task.heads = group_;
    task.T = n;
    task.q_head_stride = d;
    task.q_time_stride = stride;
    task.q_positions = positions;
    task.pages = pages(look.part, decoded);
    task.column_most = look.most.data();
    if (all == head.entries()) {
      task.lse = lse + h * group_ * n;
    } else {
      look.lse.resize(static_cast<std::size_t>(group_ * n));
      task.lse = look.lse.data();
      apart.push_back({task.q, group_, n, d, stride, positions, task.pages, nullptr,
                       n * shape_.value, shape_.value, look.lse.data()});
    }
    tasks.push_back(task);
  }
  const kernels::Visibility visibility{call.pattern.causal, call.pattern.window};
  const auto scale = static_cast<float>(scale_);
  std::vector<float> unused(apart.size() * static_cast<std::size_t>(group_ * n * d));
  for (auto* out = unused.data(); auto& task : apart) {
    task.out = out;
    out += group_ * n * d;
  }
  if (!apart.empty())
    kernels::attend(apart, d, scale, visibility,
                    keeps_f32(call.compute) ? kernels::Products::f32 : kernels::Products::bf16);
  kernels::observe(tasks, d, scale, visibility);
  for (std::size_t h = 0; h < looked.size(); ++h) {
    const auto& look = looked[h];
    if (look.places.empty()) continue;
    auto& again = row.heads[h].again;
    again.resize(static_cast<std::size_t>(row.heads[h].entries()), kNone);
    const auto all = static_cast<std::size_t>(look.part.entries());
    for (std::size_t i = 0; i < look.places.size(); ++i) {
      auto& noted = again[static_cast<std::size_t>(look.places[i])];
      for (std::size_t g = 0; g < static_cast<std::size_t>(group_);
           ++g)  // the other where one is NaN
        noted = std::fmax(noted, look.most[g * all + static_cast<std::size_t>(look.lead) + i]);
    }
  }
}

}  // namespace mneme
