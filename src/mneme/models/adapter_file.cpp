#include "mneme/models/adapter_file.h"

#include "mneme/core/error.h"
#include "mneme/layers/lora.h"
#include "mneme/models/language_model.h"
#include "mneme/weights/digests.h"
#include "mneme/weights/safetensors.h"

#include <ATen/ATen.h>

#include <array>
#include <charconv>
#include <fmt/format.h>
#include <utility>
#include <vector>

namespace mneme {
namespace {

constexpr std::string_view kFormat = "mneme-adapter", kVersion = "1";
constexpr std::int64_t kMostRank = 65536;
// The metadata that the file itself uses; all others are notes.
constexpr std::array<std::string_view, 9> kKeys{
    "format", "version", "kind", "model", "model_digest", "parameters", "rank", "alpha", "recipe"};

std::string value(const std::map<std::string, std::string>& metadata, std::string_view key) {
  const auto found = metadata.find(std::string(key));
  return found == metadata.end() ? std::string() : found->second;
}

template <class T>
T number(const std::filesystem::path& path, const std::map<std::string, std::string>& metadata,
         std::string_view key) {
  const auto text = value(metadata, key);
  T out{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  if (error != std::errc() || end != text.data() + text.size()) {
    throw Error(Errc::corrupt,
                fmt::format("{}: '{}' of the adapter is not a number", path.string(), key));
  }
  return out;
}

AdapterInfo info_of(const SafetensorsFile& file) {
  const auto& path = file.path();
  const auto& metadata = file.metadata();
  if (value(metadata, "format") != kFormat) {
    throw Error(Errc::mismatch, fmt::format("{}: is no adapter file of mneme", path.string()));
  }
  if (value(metadata, "version") != kVersion || value(metadata, "kind") != "lora") {
    throw Error(Errc::unsupported,
                fmt::format("{}: an adapter of a kind or version that this mneme does not know: "
                            "version {} of lora is supported",
                            path.string(), kVersion));
  }
  AdapterInfo out;
  out.model = value(metadata, "model");
  out.model_digest = value(metadata, "model_digest");
  out.parameters = value(metadata, "parameters");
  out.recipe = value(metadata, "recipe");
  out.rank = number<std::int64_t>(path, metadata, "rank");
  out.alpha = number<double>(path, metadata, "alpha");
  if (out.rank < 1 || out.rank > kMostRank || !(out.alpha > 0) || !(out.alpha < 1e9)) {
    throw Error(Errc::corrupt, fmt::format("{}: an adapter of rank {} and alpha {}", path.string(),
                                           out.rank, out.alpha));
  }
  for (const auto& [key, text] : metadata) {
    if (std::find(kKeys.begin(), kKeys.end(), key) == kKeys.end()) out.notes[key] = text;
  }
  return out;
}

}  // namespace

void save_adapter(const std::filesystem::path& path, const Params& adapters,
                  const AdapterInfo& info, std::string_view type) {
  const auto to = type == "f32"    ? at::kFloat
                  : type == "f16"  ? at::kHalf
                  : type == "bf16" ? at::kBFloat16
                                   : at::ScalarType::Undefined;
  if (to == at::ScalarType::Undefined) {
    throw Error(Errc::invalid,
                fmt::format("an adapter is kept as f32, f16 or bf16, not '{}'", type));
  }
  std::map<std::string, at::Tensor> tensors;
  for (const auto& name : adapters.names("*.lora_a|*.lora_b")) {
    auto stored = adapters.find(name)->tensor.detach().to(to);
    if (!stored.isfinite().all().item<bool>()) {
      throw Error(Errc::invalid,
                  fmt::format("the adapter's '{}' holds numbers that {} cannot keep", name, type));
    }
    tensors.emplace(name, std::move(stored));
  }
  std::map<std::string, std::string> metadata(info.notes);
  for (const auto key : kKeys) {
    if (metadata.contains(std::string(key))) {
      throw Error(Errc::invalid, fmt::format("an adapter's note cannot be named '{}'", key));
    }
  }
  metadata["format"] = kFormat;
  metadata["version"] = kVersion;
  metadata["kind"] = "lora";
  metadata["model"] = info.model;
  metadata["model_digest"] = info.model_digest;
  metadata["parameters"] = info.parameters;
  metadata["rank"] = fmt::format("{}", info.rank);
  metadata["alpha"] = fmt::format("{}", info.alpha);
  metadata["recipe"] = info.recipe;
  write_safetensors(path, tensors, metadata);
}

AdapterInfo read_adapter_info(const std::filesystem::path& path) {
  return info_of(SafetensorsFile(path));
}

AdapterInfo load_adapter(const std::filesystem::path& path, LanguageModel& model) {
  const SafetensorsFile file(path);
  auto info = info_of(file);
  if (info.model_digest != model.digest) {
    throw Error(
        Errc::mismatch,
        fmt::format(
            "{}: the adapter was made for another model: {} ({:.12}...), this is {} ({:.12}...)",
            path.string(), info.model, info.model_digest, model.name, model.digest));
  }
  const auto misfit = [&](std::string_view tensor, const std::string& why) {
    return Error(Errc::mismatch,
                 fmt::format("{}: the adapter's '{}' {}", path.string(), tensor, why));
  };
  // Everything is checked before anything is attached.
  Params adapters;
  std::vector<std::pair<std::string, std::vector<std::int64_t>>> matrices;
  for (const auto& entry : file.entries()) {
    constexpr std::string_view kA = ".lora_a", kB = ".lora_b";
    const std::string_view name = entry.name;
    if (!name.ends_with(kA) && !name.ends_with(kB)) throw misfit(name, "is no part of a LoRA");
    const auto matrix = std::string(name.substr(0, name.size() - kA.size()));
    const auto parameter = model.params.find(matrix);
    const auto sizes = parameter ? parameter->sizes() : std::vector<std::int64_t>{};
    if (sizes.size() != 2) throw misfit(name, "belongs to no matrix of this model");
    const auto wanted = name.ends_with(kA) ? std::vector<std::int64_t>{info.rank, sizes[1]}
                                           : std::vector<std::int64_t>{sizes[0], info.rank};
    if (entry.shape != wanted) {
      throw misfit(name, fmt::format("has the sizes [{}], [{}] is wanted",
                                     fmt::join(entry.shape, ", "), fmt::join(wanted, ", ")));
    }
    if (file.find(matrix + std::string(name.ends_with(kA) ? kB : kA)) == nullptr) {
      throw misfit(name, "has no other half");
    }
    Parameter loaded;
    loaded.tensor = to_tensor(file.weight(entry)).clone();
    loaded.frozen = true;
    if (!loaded.tensor.isfinite().all().item<bool>()) {
      throw Error(Errc::corrupt,
                  fmt::format("{}: the adapter's '{}' holds numbers that are not finite",
                              path.string(), name));
    }
    adapters.set(name, std::move(loaded));
    if (name.ends_with(kA)) matrices.emplace_back(matrix, sizes);
  }
  if (matrices.empty())
    throw Error(Errc::corrupt, fmt::format("{}: the adapter is empty", path.string()));
  for (const auto& [matrix, sizes] : matrices) {
    model.params.find(matrix)->adapters.push_back(
        std::make_shared<LoRA>(adapters, matrix, sizes[1], sizes[0], info.rank, info.alpha));
  }
  model.digest = sha256_hex(model.digest + "\n" + file_digest(*file.file()));
  return info;
}

}  // namespace mneme
