// Memory for pages of keys and values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace mneme {

/// Memory that begins a cache line, not initialised, and what gives it back, told its bytes again.
[[nodiscard]] std::byte* take_page_memory(std::size_t bytes);
void give_back_page_memory(std::byte* memory, std::size_t bytes) noexcept;

/// Memory that begins a cache line, not initialised; the last copy gives it back. Small pieces are cut from blocks that the
/// system is asked to map as one: a step reads pages from all over memory, and would look up each of them else. Safe to
/// use from several threads.
[[nodiscard]] std::shared_ptr<std::byte> page_memory(std::int64_t bytes);

/// The same memory for objects: small ones that live as long as a text would else split up the room in the heap that a
/// prompt's numbers come and go in.
template <class T>
struct PageAllocator {
  using value_type = T;
  PageAllocator() = default;
  template <class U>
  PageAllocator(const PageAllocator<U>&) noexcept {}  // NOLINT(google-explicit-constructor)
  [[nodiscard]] T* allocate(std::size_t n) {
    static_assert(alignof(T) <= 64);
    return reinterpret_cast<T*>(take_page_memory(n * sizeof(T)));
  }
  void deallocate(T* memory, std::size_t n) noexcept {
    give_back_page_memory(reinterpret_cast<std::byte*>(memory), n * sizeof(T));
  }
  bool operator==(const PageAllocator&) const = default;
};

/// Bytes of the blocks that somebody holds a piece of, the other pieces among them.
[[nodiscard]] std::int64_t page_memory_blocks();

}  // namespace mneme
