#include "mneme/kernels/attend.h"

#include "mneme/core/error.h"
#include "mneme/kernels/codec.h"
#include "mneme/kernels/kernel_table.h"
#include "mneme/kernels/level.h"
#include "mneme/kernels/scratch.h"
#include "mneme/kernels/timing.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <mutex>
#include <string>

namespace mneme::kernels {
namespace {

// Vector multiply-adds below which another thread costs more than it brings.
constexpr std::int64_t kWorkPerThread = 8192;

void check_shape(const AttendTask& task) {
  if (task.heads < 0 || task.T < 0) {
    throw Error(Errc::invalid, "queries of shape [" + std::to_string(task.heads) + "," +
                                   std::to_string(task.T) + ",d]");
  }
}

// The queries t_begin..t_end of heads g_begin..g_begin+heads of one task, and what they cost.
struct Unit {
  const AttendTask* task;
  const PositionRange* ranges;
  std::int64_t g_begin, heads, t_begin, t_end;
  std::int64_t entry_cost;  // vector multiply-adds for one entry
  std::int64_t cost;
};

// A run of pages of a unit, for one thread. Where a unit has several, each writes to `partial`.
struct Part {
  std::int64_t unit, page_begin, page_end;
  std::int64_t partial;  // -1, or where in the partial results its [heads,T,d] and [heads,T] begin
};

// A unit of several parts, whose partial results lie one after another.
struct Split {
  std::int64_t unit, partial, parts;
};

// What a call plans; the thread's own, and kept: a decoding step plans once a layer and takes no memory for it.
struct Plan {
  std::vector<PositionRange> ranges;  // of the pages of all tasks
  std::vector<Unit> units;
  std::vector<Part> parts;
  std::vector<std::size_t> share_ends;  // in `parts`, of every thread's share
  std::vector<Split> splits;
  std::vector<float> partials;
};

bool sees(const PositionRange& page, const PositionRange& queries, const Visibility& visibility) {
  if (visibility.causal && page.lowest > queries.highest) return false;
  return visibility.window == 0 || page.highest > queries.lowest - visibility.window;
}

}  // namespace

void check_page(const PageView& page) {
  if (page.entries < 0 || page.entries > kPageEntries) {
    throw Error(Errc::invalid, "a page of " + std::to_string(page.entries) + " entries; at most " +
                                   std::to_string(kPageEntries) + " fit");
  }
  if (page.channels != nullptr &&
      (page.encoded != 0 || page.k_width < 1 || page.k_width > kMostHeadWidth)) {
    throw Error(Errc::invalid,
                "keys of " + std::to_string(page.k_width) +
                    " channels; some of a key's numbers are held as they are, at most " +
                    std::to_string(kMostHeadWidth));
  }
  if (page.encoded == 0) return;
  if (page.first < 0 || page.first > page.encoded - page.entries) {
    throw Error(Errc::invalid, "entries " + std::to_string(page.first) + " to " +
                                   std::to_string(std::int64_t{page.first} + page.entries) +
                                   " of an encoded page of " + std::to_string(page.encoded));
  }
  using enum NumberCodec;
  if ((page.k_codec != group8 && page.k_codec != channel4) ||
      (page.v_codec != group8 && page.v_codec != group4)) {
    throw Error(
        Errc::invalid,
        "attention reads encoded keys as group8 or channel4 and values as group8 or group4");
  }
}

void check_attention(std::int64_t d, const Visibility& visibility) {
  if (d <= 0 || d % 8 != 0 || d > kMostHeadWidth) {
    throw Error(Errc::invalid, "a head width of " + std::to_string(d) +
                                   "; attention takes multiples of 8 up to " +
                                   std::to_string(kMostHeadWidth));
  }
  if (visibility.window < 0) {
    throw Error(Errc::invalid,
                "a window of " + std::to_string(visibility.window) + " entries; 0 means unlimited");
  }
}

void attend(std::span<const AttendTask> tasks, std::int64_t d, float scale,
            const Visibility& visibility, Products products) {
  check_attention(d, visibility);
  const KernelTable& kernels = table();
  const bool bf16 = products == Products::bf16 && kernels.attend_bf16 != nullptr;
  std::size_t pages = 0;
  for (const AttendTask& task : tasks) {
    check_shape(task);
    pages += task.pages.size();
  }
  thread_local Plan kept;
  // Other threads read the plan too: named inside them, `kept` would be their own.
  auto& [ranges, units, parts, share_ends, splits, partials] = kept;
  ranges.clear();
  ranges.reserve(pages);
  units.clear();
  std::int64_t total = 0;
  for (const AttendTask& task : tasks) {
    const PositionRange* own = ranges.data() + ranges.size();
    // At a decoding step other memory went through the caches since: the views are walked through once, by one thread.
    for (const PageView& page : task.pages) {
      check_page(page);
      ranges.push_back(page.range.lowest <= page.range.highest
                           ? page.range
                           : kernels.position_range(page.positions, page.entries));
    }
    if (task.heads == 0 || task.T == 0) continue;
    // A block holds so many heads, or all heads for so many times.
    const std::int64_t group = std::min(task.heads, kernels.attend_rows);
    const std::int64_t step =
        kernels.attend_rows / group * (bf16 ? kernels.attend_bf16_groups : std::int64_t{1});
    for (std::int64_t t = 0; t < task.T; t += step) {
      const std::int64_t end = std::min(t + step, task.T);
      const PositionRange from = kernels.position_range(task.q_positions + t, end - t);
      std::int64_t entries = 0;
      for (std::size_t p = 0; p < task.pages.size(); ++p) {
        if (sees(own[p], from, visibility)) entries += task.pages[p].entries;
      }
      for (std::int64_t g = 0; g < task.heads; g += group) {
        Unit unit{&task, own, g, std::min(group, task.heads - g), t, end, 0, 0};
        const std::int64_t rows = (end - t) * unit.heads;
        // Along d, sums across lanes cost about as much as the products.
        unit.entry_cost = rows <= kernels.attend_single_rows
                              ? 3 * rows * ((d + kernels.lanes - 1) / kernels.lanes)
                              : 2 * d * ((rows + kernels.lanes - 1) / kernels.lanes);
        unit.cost = unit.entry_cost * entries;
        total += unit.cost;
        units.push_back(unit);
      }
    }
  }
  if (units.empty()) return;

  // Cut the sequence of all pages of all units into shares of equal cost, one a thread.
  const std::int64_t threads = std::clamp<std::int64_t>(
      total / kWorkPerThread, 1, std::max<std::int64_t>(1, at::get_num_threads()));
  parts.clear();
  share_ends.clear();
  splits.clear();
  std::int64_t partial_floats = 0, spent = 0;
  const auto last_share = [&] {
    return static_cast<std::int64_t>(share_ends.size()) + 1 == threads;
  };
  // What has been spent where the share that is filled now ends.
  const auto limit = [&] {
    return static_cast<std::int64_t>(static_cast<double>(total) *
                                     static_cast<double>(share_ends.size() + 1) / threads);
  };
  const auto next_shares = [&](std::int64_t at) {
    while (!last_share() && at >= limit()) share_ends.push_back(parts.size());
  };
  for (std::size_t u = 0; u < units.size(); ++u) {
    const Unit& unit = units[u];
    const auto index = static_cast<std::int64_t>(u);
    const std::int64_t page_count = static_cast<std::int64_t>(unit.task->pages.size());
    next_shares(spent);
    if (spent + unit.cost <= limit() || last_share()) {
      parts.push_back({index, 0, page_count, -1});
      spent += unit.cost;
      continue;
    }
    const PositionRange from =
        kernels.position_range(unit.task->q_positions + unit.t_begin, unit.t_end - unit.t_begin);
    const std::int64_t rows = (unit.t_end - unit.t_begin) * unit.heads;
    Split split{index, partial_floats, 0};
    std::int64_t begin = 0;
    const auto close = [&](std::int64_t end) {
      if (end == begin) return;
      parts.push_back({index, begin, end, partial_floats});
      partial_floats += rows * (d + 1);
      ++split.parts;
      begin = end;
    };
    for (std::int64_t p = 0; p < page_count; ++p) {
      const auto at = static_cast<std::size_t>(p);
      if (!sees(unit.ranges[at], from, visibility)) continue;
      const std::int64_t cost = unit.entry_cost * unit.task->pages[at].entries;
      // The page goes to the share that holds most of it.
      if (!last_share() && spent + cost / 2 >= limit()) {
        close(p);
        next_shares(spent + cost / 2);
      }
      spent += cost;
    }
    close(page_count);
    if (split.parts == 1) {
      parts.back() = {index, 0, page_count, -1};
    } else {
      splits.push_back(split);
    }
  }
  share_ends.resize(static_cast<std::size_t>(threads), parts.size());

  partials.resize(static_cast<std::size_t>(partial_floats));
  const auto run = [&](const Part& part, const Part* after, float* scratch) {
    const Unit& unit = units[static_cast<std::size_t>(part.unit)];
    const AttendTask& task = *unit.task;
    const std::int64_t T = unit.t_end - unit.t_begin;
    AttendBlock block{};
    block.q = task.q + unit.g_begin * task.q_head_stride;
    block.heads = unit.heads;
    block.q_head_stride = task.q_head_stride;
    block.q_time_stride = task.q_time_stride;
    block.t_begin = unit.t_begin;
    block.t_end = unit.t_end;
    block.q_positions = task.q_positions;
    block.pages = task.pages.data();
    block.ranges = unit.ranges;
    block.page_begin = part.page_begin;
    block.page_end = part.page_end;
    if (after != nullptr) {
      const auto& pages = units[static_cast<std::size_t>(after->unit)].task->pages;
      if (after->page_begin < after->page_end)
        block.then = &pages[static_cast<std::size_t>(after->page_begin)];
    }
    block.causal = visibility.causal;
    block.window = visibility.window;
    block.d = d;
    block.scale = scale;
    block.rounds = products == Products::bf16;
    if (part.partial < 0) {
      block.out =
          task.out + unit.g_begin * task.out_head_stride + unit.t_begin * task.out_time_stride;
      block.out_head_stride = task.out_head_stride;
      block.out_time_stride = task.out_time_stride;
      block.lse = task.lse == nullptr ? nullptr : task.lse + unit.g_begin * task.T + unit.t_begin;
      block.lse_head_stride = task.T;
    } else {
      block.out = partials.data() + part.partial;
      block.out_head_stride = T * d;
      block.out_time_stride = d;
      block.lse = block.out + unit.heads * T * d;
      block.lse_head_stride = T;
    }
    (bf16 ? kernels.attend_bf16 : kernels.attend)(block, scratch);
  };
  const std::int64_t scratch_floats =
      bf16 ? kernels.attend_bf16_scratch(d) : kernels.attend_scratch(d);
  const Timed timed;
  at::parallel_for(0, threads, 1, [&](std::int64_t begin, std::int64_t end) {
    float* scratch = kernels::scratch(scratch_floats);
    for (std::int64_t i = begin; i < end; ++i) {
      const auto share = static_cast<std::size_t>(i);
      const auto last = share_ends[share];
      for (auto j = share == 0 ? 0 : share_ends[share - 1]; j < last; ++j)
        run(parts[j], j + 1 < last ? &parts[j + 1] : nullptr, scratch);
    }
  });

  for (const Split& split : splits) {
    const Unit& unit = units[static_cast<std::size_t>(split.unit)];
    const AttendTask& task = *unit.task;
    const std::int64_t T = unit.t_end - unit.t_begin, rows = T * unit.heads;
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t g = unit.g_begin + r / T, t = unit.t_begin + r % T;
      const auto partial = [&](std::int64_t part) {
        return partials.data() + split.partial + part * rows * (d + 1);
      };
      const auto lse_of = [&](std::int64_t part) { return partial(part)[rows * d + r]; };
      float peak = -std::numeric_limits<float>::infinity();
      for (std::int64_t part = 0; part < split.parts; ++part) {
        if (lse_of(part) > peak || std::isnan(lse_of(part))) peak = lse_of(part);
      }
      float* out = task.out + g * task.out_head_stride + t * task.out_time_stride;
      std::fill(out, out + d, 0.f);
      double sum = 0;
      if (peak != -std::numeric_limits<float>::infinity()) {
        for (std::int64_t part = 0; part < split.parts; ++part)
          sum += std::exp(static_cast<double>(lse_of(part)) - peak);
        for (std::int64_t part = 0; part < split.parts; ++part) {
          const auto weight =
              static_cast<float>(std::exp(static_cast<double>(lse_of(part)) - peak) / sum);
          const float* from = partial(part) + r * d;
          for (std::int64_t i = 0; i < d; ++i) out[i] += weight * from[i];
        }
      }
      if (task.lse != nullptr) task.lse[g * task.T + t] = peak + static_cast<float>(std::log(sum));
    }
  }
}

// ---- rotary positions ----

namespace {

void fill_angles(const std::vector<double>& inverse_frequencies, double magnitude,
                 std::int64_t position, float* cosine, float* sine) {
  for (std::size_t i = 0; i < inverse_frequencies.size(); ++i) {
    const double angle = static_cast<double>(position) * inverse_frequencies[i];
    cosine[i] = static_cast<float>(magnitude * std::cos(angle));
    sine[i] = static_cast<float>(magnitude * std::sin(angle));
  }
}

}  // namespace

struct Rope::Content {
  // Positions come in chunks that are filled once and never move, so that readers need no lock.
  static constexpr std::int64_t kChunk = 256, kChunks = 256;

  std::vector<double> inverse_frequencies;
  PairLayout layout;
  double magnitude;
  std::mutex filling;
  std::array<std::atomic<const float*>, kChunks> chunks{};  // [kChunk,2,pairs]: cosines, sines
  std::vector<std::vector<float>> memory;

  [[nodiscard]] std::int64_t pairs() const {
    return static_cast<std::int64_t>(inverse_frequencies.size());
  }

  const float* chunk(std::int64_t index) {
    auto& slot = chunks[static_cast<std::size_t>(index)];
    if (const float* filled = slot.load(std::memory_order_acquire)) return filled;
    const std::lock_guard lock(filling);
    if (const float* filled = slot.load(std::memory_order_acquire)) return filled;
    std::vector<float> angles(static_cast<std::size_t>(kChunk * 2 * pairs()));
    for (std::int64_t i = 0; i < kChunk; ++i) {
      float* cosine = angles.data() + i * 2 * pairs();
      fill_angles(inverse_frequencies, magnitude, index * kChunk + i, cosine, cosine + pairs());
    }
    memory.push_back(std::move(angles));
    slot.store(memory.back().data(), std::memory_order_release);
    return memory.back().data();
  }
};

Rope::Rope(std::vector<double> inverse_frequencies, PairLayout layout, double magnitude)
    : content_(std::make_unique<Content>()) {
  content_->inverse_frequencies = std::move(inverse_frequencies);
  content_->layout = layout;
  content_->magnitude = magnitude;
}
Rope::~Rope() = default;
Rope::Rope(Rope&&) noexcept = default;
Rope& Rope::operator=(Rope&&) noexcept = default;

std::int64_t Rope::width() const noexcept { return 2 * content_->pairs(); }

void Rope::rotate(float* x, std::int64_t heads, std::int64_t T, std::int64_t head_stride,
                  std::int64_t time_stride, const std::int64_t* positions) const {
  if (heads < 0 || T < 0) {
    throw Error(Errc::invalid, "vectors of shape [" + std::to_string(heads) + "," +
                                   std::to_string(T) + ",d] to rotate");
  }
  Content& content = *content_;
  const std::int64_t pairs = content.pairs();
  if (heads == 0 || pairs == 0) return;
  const KernelTable& kernels = table();
  constexpr std::int64_t kNumbersPerThread = 16 * 1024;
  const std::int64_t grain = std::max<std::int64_t>(1, kNumbersPerThread / (heads * pairs));
  const Timed timed;
  at::parallel_for(0, T, grain, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> own;  // of positions beyond those that are kept
    for (std::int64_t t = begin; t < end; ++t) {
      const std::int64_t p = positions[t];
      const bool kept =
          p > -Content::kChunk * Content::kChunks && p < Content::kChunk * Content::kChunks;
      RotateRows rows{};
      if (kept) {
        const std::int64_t distance = p < 0 ? -p : p;
        rows.cosine =
            content.chunk(distance / Content::kChunk) + distance % Content::kChunk * 2 * pairs;
        rows.sine_sign = p < 0 ? -1.f : 1.f;
      } else {
        own.resize(static_cast<std::size_t>(2 * pairs));
        fill_angles(content.inverse_frequencies, content.magnitude, p, own.data(),
                    own.data() + pairs);
        rows.cosine = own.data();
        rows.sine_sign = 1.f;
      }
      rows.sine = rows.cosine + pairs;
      rows.x = x + t * time_stride;
      rows.heads = heads;
      rows.head_stride = head_stride;
      rows.pairs = pairs;
      rows.adjacent = content.layout == PairLayout::adjacent;
      kernels.rotate(rows);
    }
  });
}

void rope(float* x, std::int64_t heads, std::int64_t T, std::int64_t head_stride,
          std::int64_t time_stride, const std::int64_t* positions,
          std::span<const double> inverse_frequencies, PairLayout layout) {
  const auto pairs = static_cast<std::int64_t>(inverse_frequencies.size());
  const KernelTable& kernels = table();
  const std::vector<double> frequencies(inverse_frequencies.begin(), inverse_frequencies.end());
  std::vector<float> angles(static_cast<std::size_t>(2 * pairs));
  for (std::int64_t t = 0; t < T; ++t) {
    fill_angles(frequencies, 1.0, positions[t], angles.data(), angles.data() + pairs);
    kernels.rotate({x + t * time_stride, heads, head_stride, angles.data(), angles.data() + pairs,
                    1.f, pairs, layout == PairLayout::adjacent});
  }
}

void exp(const float* x, float* y, std::int64_t n) {
  if (n < 0) throw Error(Errc::invalid, "exponentials of " + std::to_string(n) + " numbers");
  const KernelTable& kernels = table();
  const Timed timed;
  at::parallel_for(0, n, 32 * 1024, [&](std::int64_t begin, std::int64_t end) {
    kernels.exp(x + begin, y + begin, end - begin);
  });
}

}  // namespace mneme::kernels
