#include "counted.h"

#include <atomic>
#include <cerrno>
#include <cstdlib>

namespace mneme::check {
namespace {

std::atomic<std::int64_t> all{0}, large{0};

[[maybe_unused]] void count(std::size_t bytes) noexcept {
  all.fetch_add(1, std::memory_order_relaxed);
  if (bytes > kLarge) large.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

Allocations allocations() { return {all.load(), large.load()}; }

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

bool counts_allocations() { return true; }

extern "C" {

void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);

void* malloc(std::size_t bytes) {
  count(bytes);
  return __libc_malloc(bytes);
}
void* calloc(std::size_t n, std::size_t bytes) {
  count(n * bytes);
  return __libc_calloc(n, bytes);
}
void* realloc(void* old, std::size_t bytes) {
  count(bytes);
  return __libc_realloc(old, bytes);
}
void* memalign(std::size_t alignment, std::size_t bytes) {
  count(bytes);
  return __libc_memalign(alignment, bytes);
}
void* aligned_alloc(std::size_t alignment, std::size_t bytes) { return memalign(alignment, bytes); }
int posix_memalign(void** to, std::size_t alignment, std::size_t bytes) {
  *to = memalign(alignment, bytes);
  return *to == nullptr ? ENOMEM : 0;
}

}  // extern "C"

#else

bool counts_allocations() { return false; }

#endif

}  // namespace mneme::check
