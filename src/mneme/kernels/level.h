// The instruction level: which of the compiled forms of the kernels runs on this CPU.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace mneme::kernels {

struct KernelTable;

/// The compiled forms of every kernel, in rising order.
enum class Level {
  base,    ///< what every CPU of the architecture has
  avx2,    ///< AVX2, FMA and F16C
  avx512,  ///< AVX-512 F, BW, VL, DQ, VNNI and BF16
};

/// The level in use: the best that this CPU supports, unless the environment variable MNEME_LEVEL names a lower one
/// or set_level chose another. Throws Error (usage) when MNEME_LEVEL names no level that runs here.
[[nodiscard]] Level level();

/// "base", "avx2" or "avx512".
[[nodiscard]] std::string_view name(Level level) noexcept;

/// The levels that run on this CPU, in rising order; never empty.
[[nodiscard]] std::vector<Level> supported_levels();

/// Makes every later kernel run at this level; throws Error (unsupported) when this CPU cannot. Not meant to be called
/// while kernels run on other threads.
void set_level(Level level);

/// The kernels of that level, which must run on this CPU.
[[nodiscard]] const KernelTable& table(Level level) noexcept;

/// The kernels of the level in use; throws as level() does.
[[nodiscard]] const KernelTable& table();

/// What a kernel computes with at some level.
struct KernelForm {
  std::string_view kernel, form;
};

/// The forms of the kernels at a level, for people to read.
[[nodiscard]] std::vector<KernelForm> forms(Level level);

/// Whether products of bf16 numbers are fast here; where it is false nothing should compute in bf16.
[[nodiscard]] bool has_bf16_products();

/// The CPU's own name for reports, such as "Intel(R) Xeon(R) Platinum 8480+"; "unknown CPU" when it has none.
[[nodiscard]] std::string cpu_model();

}  // namespace mneme::kernels
