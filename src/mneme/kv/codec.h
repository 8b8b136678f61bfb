// Codec: keys and values as bytes. What is stored is used as it reads back, also the first time.
#pragma once

#include "mneme/core/error.h"
#include "mneme/kernels/page_view.h"
#include "mneme/mixers/kv_store.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace mneme {

class Codec {
 public:
  static constexpr std::string_view kKind = "codec";
  static constexpr std::string_view kKindHelp = "keys and values as bytes";
  using Make = std::unique_ptr<Codec>();

  virtual ~Codec() = default;
  /// Bytes for n entries of H heads with keys of K and values of V numbers.
  [[nodiscard]] virtual std::int64_t bytes(std::int64_t H, std::int64_t n, std::int64_t K,
                                           std::int64_t V) const = 0;
  /// Appends the slice's bytes to `out`.
  virtual void encode(const KvSlice& slice, std::string& out) const = 0;
  /// Reads back what encode wrote; `in` holds exactly `bytes(...)` bytes, else Error(corrupt).
  [[nodiscard]] virtual KvSlice decode(std::string_view in, std::int64_t H, std::int64_t n,
                                       std::int64_t K, std::int64_t V) const = 0;
  /// Entries first..first + entries of one head as attention reads them from what encode wrote of its n entries, without
  /// positions and masses; nothing where only decode can read them. `in` is to stay while the view is used, begins at a
  /// multiple of 4 bytes and holds exactly `bytes(1, ...)`, else Error(corrupt).
  [[nodiscard]] virtual std::optional<kernels::PageView> view(
      std::string_view /*in*/, std::int64_t /*n*/, std::int64_t /*K*/, std::int64_t /*V*/,
      std::int32_t /*first*/, std::int32_t /*entries*/) const {
    return std::nullopt;
  }

 protected:
  static void check_length(std::string_view in, std::int64_t wanted_bytes) {
    if (static_cast<std::int64_t>(in.size()) != wanted_bytes)
      throw Error(Errc::corrupt, "stored keys and values have the wrong length: they are damaged");
  }
};

}  // namespace mneme
