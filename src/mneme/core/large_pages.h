// Memory that the system maps in large pieces: whoever reads from all over much of it would look up each small page else.
#pragma once

#include <cstddef>

namespace mneme {

/// What the system maps as one, at such an address.
inline constexpr std::size_t kLargePage = std::size_t{2} << 20;

/// Memory from std::aligned_alloc, not initialised, for std::free. Throws std::bad_alloc.
[[nodiscard]] std::byte* allocate_aligned(std::size_t alignment, std::size_t bytes);

/// Memory from the system itself, in large pages where it has them, zeros; `bytes` is a multiple of kLargePage. The heap would
/// leave as much room between two such blocks as they hold, and what a prompt puts there stays. Throws std::bad_alloc.
[[nodiscard]] std::byte* allocate_large_pages(std::size_t bytes);
/// Gives it back.
void free_large_pages(std::byte* memory, std::size_t bytes) noexcept;

}  // namespace mneme
