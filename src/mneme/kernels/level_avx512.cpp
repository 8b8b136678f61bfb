#define MNEME_LEVEL avx512
#include "mneme/kernels/table.inl"

namespace mneme::kernels {
const KernelTable& table_avx512() noexcept { return avx512::kTable; }
}  // namespace mneme::kernels
