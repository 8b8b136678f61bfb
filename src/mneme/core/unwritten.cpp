#include "mneme/core/unwritten.h"

#include "mneme/core/large_pages.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdlib>
#include <optional>
#include <utility>

namespace mneme {
namespace {

// Block k holds 2^k KiB.
constexpr std::size_t kLeastBytes = 1024, kSizes = 7, kMostBytes = kLeastBytes << (kSizes - 1);
// As many as a step has at a time.
constexpr std::size_t kKept = 8;
constexpr std::size_t kAlignment = c10::gAlignment;

std::size_t size_index(std::size_t bytes) {
  return bytes <= kLeastBytes ? 0
                              : static_cast<std::size_t>(std::bit_width((bytes - 1) / kLeastBytes));
}

/// What a thread keeps of blocks that it gave back, the last ones first.
class KeptBlocks {
 public:
  ~KeptBlocks();
  void* take(std::size_t index) {
    auto& [blocks, count] = sizes_[index];
    return count > 0 ? blocks[--count] : nullptr;
  }
  bool keep(std::size_t index, void* block) {
    auto& [blocks, count] = sizes_[index];
    if (count == kKept) return false;
    blocks[count++] = block;
    return true;
  }

 private:
  struct Blocks {
    std::array<void*, kKept> blocks;
    std::size_t count = 0;
  };
  std::array<Blocks, kSizes> sizes_{};
};

// Tensors may outlive what a thread that ends keeps.
thread_local bool ended = false;
thread_local KeptBlocks kept;

KeptBlocks::~KeptBlocks() {
  ended = true;
  for (const auto& [blocks, count] : sizes_) {
    for (std::size_t i = 0; i < count; ++i) std::free(blocks[i]);
  }
}

template <std::size_t kIndex>
void give_back(void* block) {
  if (ended || !kept.keep(kIndex, block)) std::free(block);
}

template <std::size_t... kIndex>
constexpr auto deleters(std::index_sequence<kIndex...>) {
  return std::array<c10::DeleterFnPtr, sizeof...(kIndex)>{&give_back<kIndex>...};
}
constexpr auto kDeleters = deleters(std::make_index_sequence<kSizes>());

struct StepAllocator final : c10::Allocator {
  c10::DataPtr allocate(std::size_t bytes) override {
    if (bytes == 0 || bytes > kMostBytes) return c10::GetCPUAllocator()->allocate(bytes);
    const auto index = size_index(bytes);
    void* block = ended ? nullptr : kept.take(index);
    if (block == nullptr) block = allocate_aligned(kAlignment, kLeastBytes << index);
    return {block, block, kDeleters[index], c10::Device(c10::DeviceType::CPU)};
  }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

StepAllocator allocator;

}  // namespace

at::TensorBase unwritten(at::IntArrayRef sizes) {
  constexpr c10::DispatchKeySet cpu(c10::DispatchKey::CPU);
  return at::detail::empty_generic(sizes, &allocator, cpu, at::kFloat, std::nullopt);
}

}  // namespace mneme
