#include "bench/machine/limits.h"

#include "mneme/core/large_pages.h"
#include "mneme/kernels/level.h"
#include "mneme/kernels/narrow.h"
#include "mneme/kernels/packed.h"
#include "mneme/kernels/quantized.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include "bench/machine/fbgemm.h"
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <fmt/format.h>
#include <fstream>
#include <memory>
#include <sys/mman.h>
#include <unistd.h>

namespace mneme::bench {
namespace {

constexpr std::int64_t kSide = 1536;
// Rows of a step of several sequences that still takes packed weights, and of a chunk of a prompt.
constexpr std::int64_t kProductRows[] = {64, 512};
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

/// All bits of the words in one; where `ahead`, lines are asked for 3 KiB before they are needed, 12 KiB for the second cache.
template <bool ahead>
std::uint64_t folded(const std::uint64_t* at, const std::uint64_t* end) {
  constexpr std::int64_t kLine = 8, kNear = (3 << 10) / 8, kFar = (12 << 10) / 8;
  std::uint64_t sum[2 * kLine] = {};
  for (; at + 2 * kLine <= end; at += 2 * kLine) {
    if constexpr (ahead) {
      for (std::int64_t line = 0; line < 2; ++line) {
        __builtin_prefetch(at + kNear + line * kLine, 0, 3);
        __builtin_prefetch(at + kFar + line * kLine, 0, 2);
      }
    }
    for (int i = 0; i < 2 * kLine; ++i) sum[i] ^= at[i];
  }
  std::uint64_t out = 0;
  for (const auto each : sum) out ^= each;
  return out;
}

double flops(std::int64_t M, const MatrixShape& w) {
  return 2.0 * static_cast<double>(M) * static_cast<double>(w.N) * static_cast<double>(w.K);
}

std::string told(std::string_view what, std::int64_t M, const MatrixShape& w) {
  return fmt::format("{}, {} x {} x {}", what, M, w.K, w.N);
}

Limit aten_product(at::ScalarType type, std::string_view what, std::int64_t M,
                   const MatrixShape& w) {
  const auto x = at::rand({M, w.K}).to(type), weight = at::rand({w.N, w.K}).to(type);
  auto out = at::empty({M, w.N}, x.options());
  return {flops(M, w) / least_seconds([&] { at::mm_out(out, x, weight.t()); }), told(what, M, w)};
}

/// Bytes as weights of a type whose blocks begin with a scale of one.
std::vector<std::uint8_t> some_rows(WeightType type, const MatrixShape& w) {
  std::vector<std::uint8_t> out(static_cast<std::size_t>(w.N * row_bytes(type, w.K)), 0x35);
  constexpr std::uint16_t kOne = 0x3c00;
  for (std::size_t at = 0; at < out.size(); at += static_cast<std::size_t>(block_bytes(type)))
    std::memcpy(out.data() + at, &kOne, sizeof kOne);
  return out;
}

Limit packed_product(WeightType type, std::int64_t M, const MatrixShape& w) {
  const auto rows = some_rows(type, w);
  const kernels::PackedMatrix packed(type, rows.data(), w.N, w.K);
  const auto x = at::rand({M, w.K}), y = at::empty({M, w.N});
  const kernels::MatvecPart part{type, rows.data(), w.N,    y.mutable_data_ptr<float>(),
                                 w.N,  {},          &packed};
  return {flops(M, w) / least_seconds([&] {
            kernels::matvec({&part, 1}, x.const_data_ptr<float>(), M, w.K);
          }),
          told(fmt::format("packed {} with activations of 8 bits", name(type)), M, w)};
}

Limit narrow_product(kernels::NarrowType form, std::string_view what, std::int64_t M,
                     const MatrixShape& w) {
  const auto weight = at::rand({w.N, w.K}), x = at::rand({M, w.K}), y = at::empty({M, w.N});
  const kernels::NarrowMatrix narrow(form, WeightType::f32, weight.const_data_ptr<float>(), w.N,
                                     w.K);
  const kernels::NarrowPart part{&narrow, nullptr, kernels::Activation::none,
                                 y.mutable_data_ptr<float>(), w.N};
  return {flops(M, w) / least_seconds([&] {
            kernels::multiply({&part, 1}, x.const_data_ptr<float>(), M, w.K, w.K);
          }),
          told(what, M, w)};
}

Limit fbgemm_limit(std::int64_t M, const MatrixShape& w) {
  const auto product = fbgemm_product(at::rand({w.N, w.K}) - 0.5);
  if (!product) return {};
  const auto x = at::rand({M, w.K});
  return {flops(M, w) / least_seconds([&] { static_cast<void>(product(x)); }),
          told("FBGEMM in 8 bits", M, w)};
}

}  // namespace

double machine_load() {
  std::ifstream file("/proc/loadavg");
  double load = 0;
  return file >> load ? load : 0;
}

std::int64_t available_memory() {
  std::ifstream in("/proc/meminfo");
  std::string key;
  std::int64_t kib = 0;
  while (in >> key >> kib) {
    if (key == "MemAvailable:") return kib * 1024;
    in.ignore(64, '\n');
  }
  return static_cast<std::int64_t>(sysconf(_SC_AVPHYS_PAGES)) * sysconf(_SC_PAGESIZE);
}

Limit best_of(std::span<const Limit> limits) {
  const auto best =
      std::max_element(limits.begin(), limits.end(),
                       [](const Limit& a, const Limit& b) { return a.per_s < b.per_s; });
  return best == limits.end() ? Limit{} : *best;
}

std::string ReadWay::told() const {
  return fmt::format("pages of {}{}, {} thread{}", huge ? "2 MiB" : "4 KiB",
                     ahead ? ", lines asked for ahead" : "", threads, threads > 1 ? "s" : "");
}

MemoryReading::MemoryReading(ReadWay way, std::int64_t bytes)
    : way_(way),
      words_(std::max(bytes, kLeastBytes) / static_cast<std::int64_t>(sizeof(std::uint64_t))) {
  auto* memory = allocate_large_pages(allocated());
  if (!way.huge) ::madvise(memory, allocated(), MADV_NOHUGEPAGE);
  begin_ = reinterpret_cast<std::uint64_t*>(memory);
  std::fill_n(begin_, words_, 1);
}

MemoryReading::~MemoryReading() {
  free_large_pages(reinterpret_cast<std::byte*>(begin_), allocated());
}

std::size_t MemoryReading::allocated() const {
  return (static_cast<std::size_t>(bytes()) + kLargePage - 1) / kLargePage * kLargePage;
}

double MemoryReading::pass() {
  const auto read = way_.ahead ? folded<true> : folded<false>;
  std::atomic<std::uint64_t> sink{0};
  const auto began = std::chrono::steady_clock::now();
  at::parallel_for(0, way_.threads, 1, [&](std::int64_t first, std::int64_t last) {
    const auto share = [&](std::int64_t i) { return words_ / way_.threads * i; };
    sink.fetch_xor(read(begin_ + share(first), begin_ + share(last)), std::memory_order_relaxed);
  });
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

ReadLimit read_bandwidth(std::int64_t bytes) {
  std::vector<int> counts{1};
  if (at::get_num_threads() > 1) counts.push_back(at::get_num_threads());
  ReadLimit best;
  for (const bool huge : {false, true}) {
    for (const bool ahead : {false, true}) {
      for (const int threads : counts) {
        const ReadWay way{huge, ahead, threads};
        MemoryReading reading(way, bytes);
        const auto rate =
            static_cast<double>(reading.bytes()) / least_seconds([&] { reading.pass(); });
        if (rate > best.per_s) best = {{rate, way.told()}, way};
      }
    }
  }
  return best;
}

ProductLimits product_limits(std::span<const MatrixShape> shapes) {
  const c10::InferenceMode inference;
  std::vector<Limit> f32, in_bf16, others;
  constexpr MatrixShape kCube{kSide, kSide};
  f32.push_back(aten_product(at::kFloat, "ATen in f32", kSide, kCube));
  if (kernels::has_bf16_products())
    in_bf16.push_back(aten_product(at::kBFloat16, "ATen in bf16", kSide, kCube));
  const auto with = [&](std::int64_t M, const MatrixShape& w) {
    f32.push_back(aten_product(at::kFloat, "ATen in f32", M, w));
    if (kernels::has_bf16_products())
      in_bf16.push_back(aten_product(at::kBFloat16, "ATen in bf16", M, w));
    for (const auto type : {WeightType::q8_0, WeightType::q4_1}) {
      if (w.K % block_size(type) == 0) others.push_back(packed_product(type, M, w));
    }
    using enum kernels::NarrowType;
    for (const auto& [form, what] : {std::pair(bf16, "rounded weights in bf16"),
                                     std::pair(int16, "rounded weights in 12 bits"),
                                     std::pair(int8, "rounded weights in 8 bits")}) {
      if (!kernels::multiplies(form)) continue;
      auto& of_its_kind = form == bf16 && kernels::has_bf16_products() ? in_bf16 : others;
      of_its_kind.push_back(narrow_product(form, what, M, w));
    }
    others.push_back(fbgemm_limit(M, w));
  };
  for (const auto& w : shapes) {
    for (const auto M : kProductRows) with(M, w);
  }
  ProductLimits out{best_of(f32), best_of(in_bf16), {}};
  others.insert(others.end(), {out.f32, out.bf16});
  out.best = best_of(others);
  return out;
}

}  // namespace mneme::bench
