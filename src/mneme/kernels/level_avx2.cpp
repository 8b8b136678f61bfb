#define MNEME_LEVEL avx2
#include "mneme/kernels/table.inl"

namespace mneme::kernels {
const KernelTable& table_avx2() noexcept { return avx2::kTable; }
}  // namespace mneme::kernels
