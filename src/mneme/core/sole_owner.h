// Things that forks share until one of them writes.
#pragma once

#include <atomic>
#include <memory>

namespace mneme {

/// Whether nobody else holds what is held, so that it may be written in place: whatever others read of it, they had read when
/// they let go, also on another thread.
template <class T>
[[nodiscard]] bool sole_owner(const std::shared_ptr<T>& held) noexcept {
  if (held.use_count() > 1) return false;
  std::atomic_thread_fence(std::memory_order_acquire);
  return true;
}

}  // namespace mneme
