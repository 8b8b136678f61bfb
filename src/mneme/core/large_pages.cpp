#include "mneme/core/large_pages.h"

#include <cstdint>
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
#if defined(__linux__)
  auto* mapped =
      mmap(nullptr, bytes + kLargePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  auto* begin = static_cast<std::byte*>(mapped);
  const auto before = (kLargePage - reinterpret_cast<std::uintptr_t>(begin) % kLargePage) %
                      kLargePage;  // of the first large page
  if (before > 0) munmap(begin, before);
  munmap(begin + before + bytes, kLargePage - before);
  madvise(begin + before, bytes, MADV_HUGEPAGE);
  return begin + before;
#else
  return allocate_aligned(kLargePage, bytes);
#endif
}

void free_large_pages(std::byte* memory, [[maybe_unused]] std::size_t bytes) noexcept {
#if defined(__linux__)
  munmap(memory, bytes);
#else
  std::free(memory);
#endif
}

}  // namespace mneme
