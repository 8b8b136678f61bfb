#include "mneme/core/large_pages.h"

#include <cstdlib>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mneme {

std::byte* allocate_aligned(std::size_t alignment, std::size_t bytes) {
  auto* memory = static_cast<std::byte*>(std::aligned_alloc(alignment, bytes));
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

std::byte* allocate_large_pages(std::size_t bytes) {
  auto* memory = allocate_aligned(kLargePage, bytes);
#if defined(__linux__)
  madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return memory;
}

}  // namespace mneme
