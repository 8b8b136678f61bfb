// Writing and reading flat bytes: little endian, every length bounded before anything is allocated.
#pragma once

#include "mneme/core/error.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>

namespace mneme {

/// Appends plain values to a string, or only counts them.
class ByteWriter {
 public:
  /// Counts without storing when `out` is null.
  explicit ByteWriter(std::string* out) : out_(out) {}

  void raw(const void* data, std::size_t n) {
    if (out_) out_->append(static_cast<const char*>(data), n);
    written_ += static_cast<std::int64_t>(n);
  }
  template <class T>
    requires std::is_trivially_copyable_v<T>
  void value(const T& x) {
    raw(&x, sizeof x);
  }
  void string(std::string_view text) {
    value(static_cast<std::uint64_t>(text.size()));
    raw(text.data(), text.size());
  }
  /// dtype, sizes and contiguous contents of a CPU or device tensor.
  void tensor(const at::Tensor&);
  [[nodiscard]] std::int64_t written() const { return written_; }
  [[nodiscard]] bool counts_only() const { return out_ == nullptr; }

 private:
  std::string* out_;
  std::int64_t written_ = 0;
};

/// Reads what ByteWriter wrote; every method throws Error(corrupt) instead of reading past the end.
class ByteReader {
 public:
  explicit ByteReader(std::string_view bytes) : bytes_(bytes) {}

  std::string_view raw(std::uint64_t n) {
    if (n > bytes_.size() - at_)
      throw Error(Errc::corrupt, "stored state ends early: it is truncated or damaged");
    const auto out = bytes_.substr(at_, n);
    at_ += n;
    return out;
  }
  template <class T>
    requires std::is_trivially_copyable_v<T>
  T value() {
    T x;
    std::memcpy(&x, raw(sizeof x).data(), sizeof x);
    return x;
  }
  /// A count of items that take at least `least_bytes` each, so it cannot exceed what is left.
  std::uint64_t count(std::uint64_t least_bytes = 1) {
    const auto n = value<std::uint64_t>();
    if (n > (bytes_.size() - at_) / (least_bytes ? least_bytes : 1)) {
      throw Error(Errc::corrupt, "stored state holds an impossible count: it is damaged");
    }
    return n;
  }
  std::string string() { return std::string(raw(count())); }
  at::Tensor tensor();
  [[nodiscard]] bool done() const { return at_ == bytes_.size(); }

 private:
  std::string_view bytes_;
  std::size_t at_ = 0;
};

}  // namespace mneme
