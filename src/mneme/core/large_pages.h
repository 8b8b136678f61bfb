// Memory that the system maps in large pieces: whoever reads from all over much of it would look up each small page else.
#pragma once

#include <cstddef>

namespace mneme {

/// What the system maps as one, at such an address.
inline constexpr std::size_t kLargePage = std::size_t{2} << 20;

/// Memory from std::aligned_alloc, not initialised, for std::free. Throws std::bad_alloc.
[[nodiscard]] std::byte* allocate_aligned(std::size_t alignment, std::size_t bytes);

/// The same, asked for in large pages; `bytes` is a multiple of kLargePage. Where the system refuses, small ones do.
[[nodiscard]] std::byte* allocate_large_pages(std::size_t bytes);

}  // namespace mneme
