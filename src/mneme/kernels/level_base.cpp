#define MNEME_LEVEL base
#include "mneme/kernels/table.inl"

namespace mneme::kernels {
const KernelTable& table_base() noexcept { return base::kTable; }
}  // namespace mneme::kernels
