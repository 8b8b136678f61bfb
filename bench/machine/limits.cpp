#include "bench/machine/limits.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <vector>

namespace mneme::bench {
namespace {

constexpr std::int64_t kBytes = std::int64_t{1} << 28;
constexpr std::int64_t kSide = 1536;
constexpr int kPasses = 7;

/// Seconds of the fastest of several runs.
double least_seconds(const auto& work) {
  double least = 0;
  for (int i = 0; i <= kPasses; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    work();
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    if (i == 1 || (i > 1 && seconds < least)) least = seconds;  // the first one warms
  }
  return least;
}

}  // namespace

double machine_load() {
  std::ifstream file("/proc/loadavg");
  double load = 0;
  return file >> load ? load : 0;
}

double read_bandwidth() {
  const std::vector<std::uint64_t> words(kBytes / sizeof(std::uint64_t), 1);
  std::atomic<std::uint64_t> sink{0};
  const auto n = static_cast<std::int64_t>(words.size());
  return static_cast<double>(kBytes) / least_seconds([&] {
           at::parallel_for(0, n, 4096, [&](std::int64_t begin, std::int64_t end) {
             std::uint64_t sum[16] = {};
             for (; begin + 16 <= end; begin += 16) {
               for (int i = 0; i < 16; ++i) sum[i] ^= words[static_cast<std::size_t>(begin + i)];
             }
             for (const auto each : sum) sink.fetch_xor(each, std::memory_order_relaxed);
           });
         });
}

double product_rate(at::ScalarType type) {
  const c10::InferenceMode inference;
  const auto a = at::rand({kSide, kSide}).to(type), b = at::rand({kSide, kSide}).to(type);
  auto out = at::empty({kSide, kSide}, a.options());
  constexpr auto kFlops =
      2.0 * static_cast<double>(kSide) * static_cast<double>(kSide) * static_cast<double>(kSide);
  return kFlops / least_seconds([&] { at::mm_out(out, a, b); });
}

}  // namespace mneme::bench
