#include "mneme/kernels/observe.h"

#include "mneme/core/error.h"
#include "mneme/kernels/kernel_table.h"
#include "mneme/kernels/level.h"
#include "mneme/kernels/scratch.h"
#include "mneme/kernels/timing.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

namespace mneme::kernels {
namespace {

// Vector multiply-adds below which another thread costs more than it brings.
constexpr std::int64_t kScoresPerThread = 8192;

// Runs of pages into which a task is cut at most: each has sums of the rows of its own.
constexpr std::int64_t kMostRuns = 64;

void check(const ObserveTask& task) {
  if (task.heads < 0 || task.T < 0 || task.functionals < 0) {
    throw Error(Errc::invalid, "queries of shape [" + std::to_string(task.heads) + "," +
                                   std::to_string(task.T) + ",d] to observe with " +
                                   std::to_string(task.functionals) + " functionals");
  }
  if (task.lse == nullptr && task.heads > 0 && task.T > 0)
    throw Error(Errc::invalid, "weights are observed with the lse that attend gave, which is null");
  if (task.row_sums != nullptr && task.functionals > 0 && task.columns == nullptr) {
    throw Error(Errc::invalid, "sums of rows with " + std::to_string(task.functionals) +
                                   " functionals, whose columns are null");
  }
  for (const PageView& page : task.pages) check_page(page);
}

// What the runs of pages of one task share.
struct Observed {
  const ObserveTask* task;
  std::vector<PositionRange> page_ranges, query_ranges;
  std::int64_t entries = 0;
  std::int64_t sums = 0;    // a row, of one run: those with columns, and the entropy
  std::vector<float> runs;  // [runs,sums * heads * T]: row sums, then entropies
};

struct Run {
  std::size_t observed;
  std::int64_t index, page_begin, page_end, first_entry;
};

// Adds the sums of all runs to the task's own, in the order of the pages.
void add_runs(const Observed& o) {
  const ObserveTask& task = *o.task;
  const std::int64_t rows = task.heads * task.T, floats = o.sums * rows;
  const std::int64_t with_columns = task.row_sums == nullptr ? 0 : rows * task.functionals;
  constexpr std::int64_t kFloatsPerThread = 4096;
  at::parallel_for(0, floats, kFloatsPerThread, [&](std::int64_t begin, std::int64_t end) {
    for (std::size_t run = 0; run < o.runs.size(); run += static_cast<std::size_t>(floats)) {
      const float* from = o.runs.data() + run;
      std::int64_t i = begin;
      for (; i < std::min(end, with_columns); ++i) task.row_sums[i] += from[i];
      for (; i < end; ++i) task.entropy[i - with_columns] += from[i];
    }
  });
}

}  // namespace

void observe(std::span<const ObserveTask> tasks, std::int64_t d, float scale,
             const Visibility& visibility) {
  check_attention(d, visibility);
  for (const ObserveTask& task : tasks) check(task);

  const KernelTable& kernels = table();
  std::vector<Observed> observed;
  std::vector<Run> runs;
  std::int64_t work = 0;
  for (const ObserveTask& task : tasks) {
    const bool row_sums = task.row_sums != nullptr && task.functionals > 0;
    if (task.heads == 0 || task.T == 0 ||
        (task.column_sums == nullptr && !row_sums && task.entropy == nullptr &&
         task.weights == nullptr && task.column_most == nullptr)) {
      continue;
    }
    Observed& o = observed.emplace_back();
    o.task = &task;
    for (std::int64_t t = 0; t < task.T; t += kernels.observe_rows) {
      o.query_ranges.push_back(
          kernels.position_range(task.q_positions + t, std::min(kernels.observe_rows, task.T - t)));
    }
    const auto pages = static_cast<std::int64_t>(task.pages.size());
    const std::int64_t pages_a_run = std::max<std::int64_t>(1, (pages + kMostRuns - 1) / kMostRuns);
    std::int64_t count = 0;
    for (std::int64_t p = 0; p < pages; ++p) {
      if (p % pages_a_run == 0) {
        runs.push_back(
            {observed.size() - 1, count++, p, std::min(p + pages_a_run, pages), o.entries});
      }
      const PageView& page = task.pages[static_cast<std::size_t>(p)];
      o.page_ranges.push_back(kernels.position_range(page.positions, page.entries));
      o.entries += page.entries;
    }
    o.sums = (row_sums ? task.functionals : 0) + (task.entropy != nullptr ? 1 : 0);
    o.runs.resize(static_cast<std::size_t>(count * o.sums * task.heads * task.T));
    work += task.heads * task.T * o.entries * ((d + kernels.lanes - 1) / kernels.lanes);
  }

  // A run adds to columns and writes weights that no other touches, so any thread may take the next one.
  const auto compute = [&](const Run& run, float* scratch) {
    Observed& o = observed[run.observed];
    const ObserveTask& task = *o.task;
    const std::int64_t rows = task.heads * task.T;
    float* sums = o.runs.data() + run.index * o.sums * rows;
    ObserveBlock block{};
    block.q = task.q;
    block.heads = task.heads;
    block.T = task.T;
    block.q_head_stride = task.q_head_stride;
    block.q_time_stride = task.q_time_stride;
    block.q_positions = task.q_positions;
    block.query_ranges = o.query_ranges.data();
    block.lse = task.lse;
    block.pages = task.pages.data();
    block.page_ranges = o.page_ranges.data();
    block.page_begin = run.page_begin;
    block.page_end = run.page_end;
    block.page_count = static_cast<std::int64_t>(task.pages.size());
    block.first_entry = run.first_entry;
    block.entries = o.entries;
    block.causal = visibility.causal;
    block.window = visibility.window;
    block.d = d;
    block.scale = scale;
    block.column_sums = task.column_sums;
    block.row_weights = task.row_weights;
    if (task.row_sums != nullptr && task.functionals > 0) {
      block.row_sums = sums;
      block.columns = task.columns;
      block.functionals = task.functionals;
      sums += rows * task.functionals;
    }
    block.entropy = task.entropy != nullptr ? sums : nullptr;
    block.weights = task.weights;
    block.column_most = task.column_most;
    kernels.observe(block, scratch);
  };
  const std::int64_t scratch_floats = kernels.observe_scratch(d);
  const std::int64_t threads = std::clamp<std::int64_t>(
      work / kScoresPerThread, 1, std::max<std::int64_t>(1, at::get_num_threads()));
  std::atomic<std::size_t> next{0};
  const Timed timed;
  at::parallel_for(0, threads, 1, [&](std::int64_t, std::int64_t) {
    float* scratch = kernels::scratch(scratch_floats);
    for (std::size_t i = next++; i < runs.size(); i = next++) compute(runs[i], scratch);
  });
  for (const Observed& o : observed) add_runs(o);
}

}  // namespace mneme::kernels
