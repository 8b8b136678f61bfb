#include "mneme/train/packing.h"

#include "mneme/core/error.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <fmt/format.h>
#include <numeric>

namespace mneme {
namespace {

std::int64_t position(const Example& example, std::size_t t) {
  return example.positions.empty() ? static_cast<std::int64_t>(t) : example.positions[t];
}

/// Whether what a token sees is more than order by position says.
bool segmented(const Example& example) {
  return !example.segments.empty() && !example.sees.empty();
}

std::int64_t segment(const Example& example, std::size_t t) {
  return segmented(example) ? example.segments[t] : 0;
}

/// Segments that an example takes of a row.
std::int64_t segments(const Example& example) {
  return segmented(example) ? static_cast<std::int64_t>(example.sees.size()) : 1;
}

void check(const Example& example, std::int64_t context) {
  const auto fail = [](const std::string& what) {
    throw Error(Errc::invalid, "an example " + what);
  };
  const auto T = example.ids.size();
  if (T == 0) fail("has no tokens");
  if (example.weights.size() != T) {
    fail(fmt::format("has {} tokens and {} weights", T, example.weights.size()));
  }
  if (example.weights.back() != 0) fail("has a weight at its last token, which nothing follows");
  for (const auto weight : example.weights) {
    if (!(weight >= 0)) fail(fmt::format("has the weight {}", weight));
  }
  if (!example.positions.empty() && example.positions.size() != T) {
    fail(fmt::format("has {} tokens and {} positions", T, example.positions.size()));
  }
  for (std::size_t t = 0; t < T; ++t) {
    const auto p = position(example, t);
    if (p < 0 || (context > 0 && p >= context)) {
      fail(fmt::format("has position {} where the model's context is {} tokens", p, context));
    }
  }
  if (!example.segments.empty() && example.segments.size() != T) {
    fail(fmt::format("has {} tokens and {} segments", T, example.segments.size()));
  }
  const auto S = static_cast<std::int32_t>(example.sees.size());
  if (S == 0) return;
  if (example.segments.empty()) fail("says which segments see which, but not where they are");
  for (const auto s : example.segments) {
    if (s < 0 || s >= S) fail(fmt::format("has segment {} of {}", s, S));
  }
  for (const auto& seen : example.sees) {
    for (const auto s : seen) {
      if (s < 0 || s >= S) fail(fmt::format("has a segment that sees segment {} of {}", s, S));
    }
  }
}

/// Which examples share a row, each row at most `room` tokens: the longest first, each where it
/// first fits.
std::vector<std::vector<std::size_t>> rows_of(const std::vector<const Example*>& examples,
                                              std::int64_t room) {
  std::vector<std::size_t> order(examples.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](auto a, auto b) { return examples[a]->tokens() > examples[b]->tokens(); });
  std::vector<std::vector<std::size_t>> rows;
  std::vector<std::int64_t> left;
  for (const auto i : order) {
    const auto n = examples[i]->tokens();
    const auto at = static_cast<std::size_t>(
        std::find_if(left.begin(), left.end(), [&](auto free) { return free >= n; }) -
        left.begin());
    if (at == rows.size()) {
      rows.emplace_back();
      left.push_back(room);
    }
    rows[at].push_back(i);
    left[at] -= n;
  }
  return rows;
}

}  // namespace

PackedExamples pack(const std::vector<const Example*>& examples, std::int64_t context,
                    bool share_rows) {
  if (examples.empty()) throw Error(Errc::invalid, "a batch of no examples");
  std::int64_t T = 0;
  for (const auto* example : examples) {
    check(*example, context);
    T = std::max(T, example->tokens());
  }
  auto rows = rows_of(examples, share_rows ? T : 0);
  if (rows.size() == examples.size()) {  // nothing fits together: the order as given
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = {i};
  }
  const auto B = static_cast<std::int64_t>(rows.size());
  std::int64_t S = 1;
  bool by_segment = false;
  for (const auto& row : rows) {
    std::int64_t here = 0;
    for (const auto i : row) {
      here += segments(*examples[i]);
      by_segment = by_segment || segmented(*examples[i]);
    }
    by_segment = by_segment || row.size() > 1;
    S = std::max(S, here);
  }

  PackedExamples out;
  auto ids = at::zeros({B, T}, at::kLong), positions = at::zeros({B, T}, at::kLong);
  auto of_segment = at::zeros({B, T}, at::kLong);
  auto sees = at::eye(S, at::kBool).expand({B, S, S}).contiguous();
  std::vector<std::int64_t> chosen, targets;
  std::vector<float> weights;
  for (std::int64_t b = 0; b < B; ++b) {
    auto* id = ids.mutable_data_ptr<std::int64_t>() + b * T;
    auto* at_position = positions.mutable_data_ptr<std::int64_t>() + b * T;
    auto* segment_of = of_segment.mutable_data_ptr<std::int64_t>() + b * T;
    auto* seen = sees.mutable_data_ptr<bool>() + b * S * S;
    std::int64_t filled = 0, first_segment = 0;
    for (const auto i : rows[static_cast<std::size_t>(b)]) {
      const auto& example = *examples[i];
      for (std::size_t t = 0; t < example.ids.size(); ++t) {
        const auto place = filled + static_cast<std::int64_t>(t);
        id[place] = example.ids[t];
        at_position[place] = position(example, t);
        segment_of[place] = first_segment + segment(example, t);
        if (example.weights[t] == 0) continue;
        chosen.push_back(b * T + place);
        targets.push_back(example.ids[t + 1]);
        weights.push_back(example.weights[t]);
        out.weight += example.weights[t];
      }
      if (segmented(example)) {
        for (std::size_t s = 0; s < example.sees.size(); ++s) {
          const auto row = first_segment + static_cast<std::int64_t>(s);
          for (const auto other : example.sees[s]) seen[row * S + first_segment + other] = true;
        }
      }
      filled += example.tokens();
      first_segment += segments(example);
    }
    out.batch.lengths.push_back(filled);
    out.tokens += filled;
  }
  if (std::all_of(out.batch.lengths.begin(), out.batch.lengths.end(),
                  [&](auto n) { return n == T; })) {
    out.batch.lengths.clear();
  }
  out.batch.ids = std::move(ids);
  out.batch.positions = std::move(positions);
  if (by_segment) {
    out.batch.pattern.by_segment = true;
    out.batch.segments = std::move(of_segment);
    out.batch.segment_sees = std::move(sees);
  }
  out.batch.mode = Mode::train;
  out.batch.logits_at = LogitsAt::chosen;
  out.batch.chosen = at::tensor(chosen, at::kLong);
  out.targets = at::tensor(targets, at::kLong);
  out.weights = at::tensor(weights, at::kFloat);
  return out;
}

}  // namespace mneme
