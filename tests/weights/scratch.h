// A folder of its own for each test, and files written byte by byte without the code under test.
#pragma once

#include "mneme/core/error.h"

#include "../folder_test.h"
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <unistd.h>
#include <utility>
#include <vector>

namespace mneme::testing {

using ScratchTest = check::FolderTest;

/// Expects that `action` throws an Error of that code, whose text is one line that holds `part`.
template <class Action>
void expect_error(Errc code, const std::string& part, Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
    return;
  }
  ADD_FAILURE() << "no error; expected one with: " << part;
}

/// A number's bytes as they lie in memory (the formats and the supported machines are
/// little-endian).
template <class T>
std::string raw(T value) {
  std::string bytes(sizeof value, '\0');
  std::memcpy(bytes.data(), &value, sizeof value);
  return bytes;
}

template <class T>
std::string raw(const std::vector<T>& values) {
  std::string bytes;
  for (const auto& value : values) bytes += raw(value);
  return bytes;
}

/// A GGUF file by its fields; each may be made wrong.
struct GgufText {
  struct Tensor {
    std::string name;
    std::vector<std::uint64_t> sizes;  // fastest first, as in the file
    std::uint32_t type;
    std::uint64_t offset;
  };
  std::uint32_t version = 3;
  std::vector<std::pair<std::string, std::string>> pairs{};  // key, value type and value as bytes
  std::vector<Tensor> tensors{};
  std::string data{};
  std::size_t alignment = 32;

  static std::string text(std::string_view value) {
    return raw<std::uint64_t>(value.size()) + std::string(value);
  }
  static std::string value(std::uint32_t type, const std::string& bytes) {
    return raw(type) + bytes;
  }
  static std::string list(std::uint32_t item, std::uint64_t count, const std::string& bytes) {
    return raw<std::uint32_t>(9) + raw(item) + raw(count) + bytes;
  }

  [[nodiscard]] std::string header() const {
    auto out = "GGUF" + raw(version) + raw<std::uint64_t>(tensors.size()) +
               raw<std::uint64_t>(pairs.size());
    for (const auto& [key, bytes] : pairs) out += text(key) + bytes;
    for (const auto& tensor : tensors) {
      out += text(tensor.name) + raw(static_cast<std::uint32_t>(tensor.sizes.size())) +
             raw(tensor.sizes) + raw(tensor.type) + raw(tensor.offset);
    }
    return out;
  }
  [[nodiscard]] std::string bytes() const {
    auto out = header();
    out.resize((out.size() + alignment - 1) / alignment * alignment, '\0');
    return out + data;
  }
};

/// A safetensors file from header text and data.
inline std::string safetensors_bytes(const std::string& header, const std::string& data) {
  return raw<std::uint64_t>(header.size()) + header + data;
}

}  // namespace mneme::testing
