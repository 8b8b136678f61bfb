#include "mneme/kv/head_profile.h"

#include "mneme/core/checksum.h"
#include "mneme/core/error.h"
#include "mneme/weights/safetensors.h"
#include "mneme/weights/weight_tensor.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <fmt/format.h>
#include <span>
#include <utility>
#include <vector>

namespace mneme {
namespace {

constexpr std::string_view kFormat = "mneme-head-profile", kVersion = "1", kMeasured = "measured.";
// What a profile may say in words; far above what any calibration says.
constexpr std::size_t kMostWords = 64 * 1024;

Error damaged(const std::filesystem::path& path, const std::string& what) {
  return {Errc::corrupt, fmt::format("{}: {}: remove it and measure again with `mneme calibrate`",
                                     path.string(), what)};
}

bool is_name(std::string_view name) {
  return !name.empty() && std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '.';
  });
}

bool is_digest(std::string_view text) {
  return text.size() == 64 && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

/// Why numbers cannot be those of a profile whose others have `layers` layers (below 0: the first are looked at); "" if
/// they can.
std::string misfit(const std::vector<std::int64_t>& sizes, std::int64_t layers) {
  if (sizes.size() < 2)
    return fmt::format("has {} dimensions where [layers, heads] are wanted", sizes.size());
  if (std::find(sizes.begin(), sizes.end(), 0) != sizes.end()) return "is empty";
  if (layers >= 0 && sizes.front() != layers)
    return fmt::format("is of {} layers where others are of {}", sizes.front(), layers);
  return "";
}

/// CRC-32C, as eight hex digits, of all numbers in the order of their names.
std::string checksum(const std::map<std::string, at::Tensor>& numbers) {
  std::uint32_t out = 0;
  for (const auto& [name, values] : numbers) {
    const auto flat = values.contiguous();
    out = crc32c(std::as_bytes(std::span(flat.const_data_ptr<float>(),
                                         static_cast<std::size_t>(flat.numel()))),
                 out);
  }
  return fmt::format("{:08x}", out);
}

}  // namespace

const at::Tensor& HeadProfile::find(std::string_view name) const {
  const auto found = numbers.find(std::string(name));
  if (found != numbers.end()) return found->second;
  throw Error(Errc::not_found,
              fmt::format("'{}' has not been measured on this model: run `mneme calibrate {}`",
                          name, name.substr(0, name.find('.'))));
}

HeadProfile HeadProfile::load(const std::filesystem::path& path) {
  const auto file = [&] {
    try {
      return SafetensorsFile(path);
    } catch (const Error& error) {
      if (error.code() != Errc::corrupt && error.code() != Errc::unsupported) throw;
      throw damaged(path, "is no head profile, or a damaged one");
    }
  }();
  const auto& metadata = file.metadata();
  const auto value = [&](std::string_view key) {
    const auto found = metadata.find(std::string(key));
    return found == metadata.end() ? std::string() : found->second;
  };
  if (value("format") != kFormat) throw damaged(path, "is no head profile");
  if (value("version") != kVersion)
    throw damaged(path, "is a head profile of another version of mneme");
  HeadProfile out;
  out.model_digest = value("model_digest");
  if (!is_digest(out.model_digest)) throw damaged(path, "does not say of which model it is");
  std::int64_t layers = -1;
  for (const auto& entry : file.entries()) {
    if (!is_name(entry.name)) throw damaged(path, "holds numbers of an impossible name");
    if (entry.dtype != "F32")
      throw damaged(path, fmt::format("'{}' is not kept as F32", entry.name));
    if (const auto why = misfit(entry.shape, layers); !why.empty())
      throw damaged(path, fmt::format("'{}' {}", entry.name, why));
    layers = entry.shape.front();
    auto numbers = to_tensor(file.weight(entry)).clone();
    if (!numbers.isfinite().all().item<bool>())
      throw damaged(path, fmt::format("'{}' holds numbers that are not finite", entry.name));
    out.numbers.emplace(entry.name, std::move(numbers));
  }
  if (value("crc32c") != checksum(out.numbers))
    throw damaged(path, "its numbers are not those that were written");
  for (const auto& [key, text] : metadata) {
    if (!key.starts_with(kMeasured)) continue;
    if (text.size() > kMostWords) throw damaged(path, "says too much of how it was measured");
    out.measured.emplace(key.substr(kMeasured.size()), text);
  }
  return out;
}

void HeadProfile::save(const std::filesystem::path& path) const {
  if (!is_digest(model_digest)) {
    throw Error(Errc::invalid,
                fmt::format("a head profile wants the digest of its model, 64 hex digits, not '{}'",
                            model_digest));
  }
  std::map<std::string, at::Tensor> tensors;
  std::int64_t layers = -1;
  for (const auto& [name, values] : numbers) {
    if (!is_name(name)) {
      throw Error(
          Errc::invalid,
          fmt::format("numbers of a head profile are named with lower-case letters, digits, "
                      "'_' and '.', not '{}'",
                      name));
    }
    if (!values.defined())
      throw Error(Errc::invalid, fmt::format("'{}' of a head profile is undefined", name));
    if (const auto why = misfit(values.sizes().vec(), layers); !why.empty())
      throw Error(Errc::invalid, fmt::format("'{}' of a head profile {}", name, why));
    layers = values.size(0);
    auto stored = values.detach().to(at::kCPU, at::kFloat);
    if (!stored.isfinite().all().item<bool>()) {
      throw Error(Errc::invalid,
                  fmt::format("'{}' of a head profile holds numbers that are not finite", name));
    }
    tensors.emplace(name, std::move(stored));
  }
  std::map<std::string, std::string> metadata{{"format", std::string(kFormat)},
                                              {"version", std::string(kVersion)},
                                              {"model_digest", model_digest},
                                              {"crc32c", checksum(tensors)}};
  for (const auto& [name, text] : measured) {
    if (text.size() > kMostWords) {
      throw Error(Errc::invalid, fmt::format("how '{}' of a head profile was measured is told in "
                                             "{} bytes, at most {} are kept",
                                             name, text.size(), kMostWords));
    }
    metadata.emplace(std::string(kMeasured) + name, text);
  }
  write_safetensors(path, tensors, metadata);
}

}  // namespace mneme
