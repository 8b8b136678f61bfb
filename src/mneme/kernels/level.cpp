#include "mneme/kernels/level.h"

#include "mneme/core/error.h"
#include "mneme/kernels/kernel_table.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace mneme::kernels {
namespace {

constexpr int kUnset = -1;
std::atomic<int> g_level{kUnset};

bool supported(Level level) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
  switch (level) {
    case Level::base:
      return true;
    case Level::avx2:
      return avx2;
    case Level::avx512:
      return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
  }
  return false;
#else
  return level == Level::base;
#endif
}

std::string supported_names() {
  std::string names;
  for (Level each : supported_levels()) {
    if (!names.empty()) names += ", ";
    names += name(each);
  }
  return names;
}

Level initial_level() {
  const char* forced = std::getenv("MNEME_LEVEL");
  if (forced == nullptr || *forced == '\0') return supported_levels().back();
  for (Level each : supported_levels()) {
    if (name(each) == forced) return each;
  }
  throw Error(Errc::usage, "MNEME_LEVEL is \"" + std::string(forced) + "\"; this CPU supports " +
                               supported_names());
}

}  // namespace

std::string_view name(Level level) noexcept {
  switch (level) {
    case Level::base:
      return "base";
    case Level::avx2:
      return "avx2";
    case Level::avx512:
      return "avx512";
  }
  return "";
}

std::vector<Level> supported_levels() {
  std::vector<Level> levels;
  for (Level each : {Level::base, Level::avx2, Level::avx512}) {
    if (supported(each)) levels.push_back(each);
  }
  return levels;
}

Level level() {
  int current = g_level.load(std::memory_order_relaxed);
  if (current == kUnset) {
    current = static_cast<int>(initial_level());
    g_level.store(current, std::memory_order_relaxed);
  }
  return static_cast<Level>(current);
}

void set_level(Level level) {
  if (!supported(level)) {
    throw Error(Errc::unsupported, "the level " + std::string(name(level)) +
                                       " does not run on this CPU, which supports " +
                                       supported_names());
  }
  g_level.store(static_cast<int>(level), std::memory_order_relaxed);
}

const KernelTable& table(Level level) noexcept {
#if defined(__x86_64__)
  if (level == Level::avx512) return table_avx512();
  if (level == Level::avx2) return table_avx2();
#endif
  return table_base();
}

const KernelTable& table() { return table(level()); }

std::vector<KernelForm> forms(Level level) {
  const bool wide = level == Level::avx512, base = level == Level::base;
  return {
      {"products, few rows", wide   ? "8-bit numbers, 64 products an instruction (VNNI)"
                             : base ? "8-bit numbers, summed in 32 bits"
                                    : "8-bit numbers, summed in 16 bits before 32"},
      {"products, more than 64 rows at 8 bits",
       wide ? "bf16, weights unpacked by tiles for libtorch"
            : "the same; f32 where the compute type is f32"},
      {"products, plain weights", wide   ? "bf16, in embeddings 8-bit numbers, rounded once"
                                  : base ? "f32 by libtorch"
                                         : "f32 by libtorch, in embeddings 12-bit numbers"},
      {"attention, few queries",
       wide   ? "f32 over pages as stored, 16 lanes; 4-bit codes as integers (VNNI)"
       : base ? "f32 over pages as stored, 4 lanes"
              : "f32 over pages as stored, 8 lanes"},
      {"attention, many queries", wide ? "pairs of bf16, a query a lane" : "f32, a query a lane"}};
}

bool has_bf16_products() { return level() == Level::avx512; }

std::string cpu_model() {
  std::string model;
#if defined(__x86_64__)
  unsigned registers[12] = {};
  bool whole = true;
  for (unsigned i = 0; i < 3; ++i) {
    unsigned* r = registers + 4 * i;
    whole = whole && __get_cpuid(0x80000002U + i, r, r + 1, r + 2, r + 3) != 0;
  }
  if (whole) {
    char text[sizeof registers + 1] = {};
    std::memcpy(text, registers, sizeof registers);
    model = text;
  }
#endif
  const auto first = model.find_first_not_of(' ');
  if (first == std::string::npos) return "unknown CPU";
  return model.substr(first, model.find_last_not_of(' ') - first + 1);
}

}  // namespace mneme::kernels
