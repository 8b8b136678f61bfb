// Memory for pages of keys and values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace mneme {

/// Memory that begins a cache line, not initialised; the last copy gives it back. Small pieces are cut from blocks that the
/// system is asked to map as one: a step reads pages from all over memory, and would look up each of them else. Safe to
/// use from several threads.
[[nodiscard]] std::shared_ptr<std::byte> page_memory(std::int64_t bytes);

/// Bytes of the blocks that exist, pieces that nobody holds among them.
[[nodiscard]] std::int64_t page_memory_blocks();

}  // namespace mneme
