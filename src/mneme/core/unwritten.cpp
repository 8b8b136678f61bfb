#include "mneme/core/unwritten.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>

namespace mneme {
namespace {

// Tensors of size k have room for 2^k KiB; the largest holds the logits of a vocabulary of 262,144.
constexpr std::size_t kLeastBytes = 1024, kSizes = 11, kMostBytes = kLeastBytes << (kSizes - 1);

std::size_t size_index(std::size_t bytes) {
  return bytes <= kLeastBytes ? 0
                              : static_cast<std::size_t>(std::bit_width((bytes - 1) / kLeastBytes));
}

std::int64_t room(std::size_t index) {
  return static_cast<std::int64_t>((kLeastBytes << index) / sizeof(float));
}

// As many as a step has at a time; of large ones, those of two steps.
constexpr std::size_t kMostKept = 8;
constexpr std::size_t most_kept(std::size_t index) {
  constexpr std::size_t kSmallest = 2, kKeptBytes = std::size_t{512} << 10;
  return std::clamp(kKeptBytes / (kLeastBytes << index), kSmallest, kMostKept);
}

at::TensorBase made(at::IntArrayRef sizes) {
  constexpr c10::DispatchKeySet cpu(c10::DispatchKey::CPU);
  return at::detail::empty_generic(sizes, c10::GetCPUAllocator(), cpu, at::kFloat, std::nullopt);
}

/// Whether a tensor that nobody else holds is still what was made: whoever had it may have kept a view of its memory,
/// recorded a gradient or put other memory in.
bool as_made(const at::TensorBase& tensor, std::size_t index) {
  const auto* impl = tensor.unsafeGetTensorImpl();
  const auto& storage = impl->unsafe_storage();
  return tensor.weak_use_count() == 1 && storage.use_count() == 1 &&
         storage.nbytes() == kLeastBytes << index && impl->storage_offset() == 0 &&
         tensor.scalar_type() == at::kFloat && impl->autograd_meta() == nullptr &&
         tensor.is_inference() == c10::InferenceMode::is_enabled();
}

/// Tensors that a thread made, of each size the one given out last first.
class KeptTensors {
 public:
  ~KeptTensors();

  at::TensorBase take(std::size_t index, at::IntArrayRef sizes) {
    auto& [tensors, count] = sizes_[index];
    const auto begin = tensors.begin();
    for (std::size_t i = 0; i < count;) {
      if (tensors[i].use_count() > 1) {
        ++i;
        continue;
      }
      // Another thread may have read from it until it let go.
      std::atomic_thread_fence(std::memory_order_acquire);
      const auto found = begin + static_cast<std::ptrdiff_t>(i);
      if (as_made(*found, index)) {
        std::rotate(begin, found, found + 1);
        return first(tensors, sizes);
      }
      std::move(found + 1, begin + static_cast<std::ptrdiff_t>(count), found);
      tensors[--count].reset();
    }
    auto tensor = made({room(index)});
    if (count < most_kept(index)) ++count;
    // The one given out longest ago is let go where there is no more room.
    std::move_backward(begin, begin + static_cast<std::ptrdiff_t>(count) - 1,
                       begin + static_cast<std::ptrdiff_t>(count));
    tensors.front() = std::move(tensor);
    return first(tensors, sizes);
  }

  [[nodiscard]] bool holds(const at::TensorBase& tensor) const {
    const auto bytes = tensor.unsafeGetTensorImpl()->unsafe_storage().nbytes();
    if (bytes > kMostBytes) return false;
    const auto& [tensors, count] = sizes_[size_index(bytes)];
    return std::any_of(tensors.begin(), tensors.begin() + static_cast<std::ptrdiff_t>(count),
                       [&](const at::TensorBase& kept) { return kept.is_same(tensor); });
  }

 private:
  using Tensors = std::array<at::TensorBase, kMostKept>;
  struct Size {
    Tensors tensors;
    std::size_t count = 0;
  };
  static at::TensorBase first(const Tensors& tensors, at::IntArrayRef sizes) {
    tensors.front().unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
    return tensors.front();
  }
  std::array<Size, kSizes> sizes_;
};

thread_local bool ended = false;
thread_local KeptTensors kept;

KeptTensors::~KeptTensors() { ended = true; }

}  // namespace

at::TensorBase unwritten(at::IntArrayRef sizes) {
  const auto bytes = c10::multiply_integers(sizes) * static_cast<std::int64_t>(sizeof(float));
  if (bytes <= 0 || bytes > static_cast<std::int64_t>(kMostBytes) || ended) return made(sizes);
  return kept.take(size_index(static_cast<std::size_t>(bytes)), sizes);
}

bool held_alone(const at::TensorBase& tensor) {
  const auto holders = tensor.use_count();
  return holders == 1 || (holders == 2 && !ended && kept.holds(tensor));
}

}  // namespace mneme
