// Layout: 8 bytes little-endian header length N; N bytes of JSON
//   {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]},
//    "__metadata__": {"key": "text"}}
// padded with spaces; then the data, to which the offsets are relative.
#include "mneme/weights/safetensors.h"

#include "mneme/core/error.h"
#include "mneme/weights/atomic_file.h"
#include "mneme/weights/mapped_file.h"
#include "mneme/weights/untrusted.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <utility>

namespace mneme {
namespace {

constexpr std::int64_t kMaxHeaderBytes = 100'000'000;  // the format's own bound
constexpr std::int64_t kMaxDimensions = 64;            // what ATen's size lists carry

// `scalar` is empty for types that are known but have no reader here; they are 1-byte floats.
struct StoredType {
  std::string_view name;
  std::int64_t bytes;
  bool is_float;
  std::optional<at::ScalarType> scalar;
};
constexpr std::array<StoredType, 15> kStoredTypes{{{"F64", 8, true, at::kDouble},
                                                   {"F32", 4, true, at::kFloat},
                                                   {"F16", 2, true, at::kHalf},
                                                   {"BF16", 2, true, at::kBFloat16},
                                                   {"I64", 8, false, at::kLong},
                                                   {"I32", 4, false, at::kInt},
                                                   {"I16", 2, false, at::kShort},
                                                   {"I8", 1, false, at::kChar},
                                                   {"U8", 1, false, at::kByte},
                                                   {"BOOL", 1, false, at::kBool},
                                                   {"U64", 8, false, std::nullopt},
                                                   {"U32", 4, false, std::nullopt},
                                                   {"U16", 2, false, std::nullopt},
                                                   {"F8_E4M3", 1, true, std::nullopt},
                                                   {"F8_E5M2", 1, true, std::nullopt}}};

const StoredType* stored_type(std::string_view name) {
  const auto* found = std::find_if(kStoredTypes.begin(), kStoredTypes.end(),
                                   [&](const auto& t) { return t.name == name; });
  return found == kStoredTypes.end() ? nullptr : found;
}

const StoredType* stored_type(at::ScalarType scalar) {
  const auto* found = std::find_if(kStoredTypes.begin(), kStoredTypes.end(),
                                   [&](const auto& t) { return t.scalar == scalar; });
  return found == kStoredTypes.end() ? nullptr : found;
}

Error damaged(const std::filesystem::path& path, const std::string& what) {
  return Error(Errc::corrupt,
               path.string() + ": " + what + ": the safetensors file is truncated or damaged");
}

Error damaged(const std::filesystem::path& path, std::string_view tensor, const std::string& what) {
  return damaged(path, "tensor '" + weights::printable(tensor) + "' " + what);
}

// A JSON number as a size: only non-negative integers that int64 holds.
std::optional<std::int64_t> size_in(const nlohmann::json& value) {
  if (!value.is_number_unsigned()) return std::nullopt;
  const auto size = value.get<std::uint64_t>();
  if (size > static_cast<std::uint64_t>(INT64_MAX)) return std::nullopt;
  return static_cast<std::int64_t>(size);
}

std::optional<std::vector<std::int64_t>> sizes_in(const nlohmann::json& object, const char* key,
                                                  std::int64_t max_sizes) {
  const auto list = object.find(key);
  if (list == object.end() || !list->is_array() ||
      static_cast<std::int64_t>(list->size()) > max_sizes)
    return std::nullopt;
  std::vector<std::int64_t> sizes;
  for (const auto& value : *list) {
    const auto size = size_in(value);
    if (!size) return std::nullopt;
    sizes.push_back(*size);
  }
  return sizes;
}

// Checks one header entry by itself; that entries fit each other is checked over all of them.
SafetensorsFile::Entry entry_in(const std::filesystem::path& path, const std::string& name,
                                const nlohmann::json& value, std::int64_t data_begin,
                                std::int64_t data_bytes) {
  const auto fail = [&](const std::string& what) -> Error { return damaged(path, name, what); };
  if (name.empty() || static_cast<std::int64_t>(name.size()) > weights::kMaxNameBytes) {
    throw fail("has a name of " + std::to_string(name.size()) + " bytes");
  }
  if (!value.is_object()) throw fail("is not described by an object");
  const auto dtype = value.find("dtype");
  if (dtype == value.end() || !dtype->is_string()) throw fail("has no dtype");
  const auto shape = sizes_in(value, "shape", kMaxDimensions);
  if (!shape) throw fail("has no valid shape");
  const auto offsets = sizes_in(value, "data_offsets", 2);
  if (!offsets || offsets->size() != 2) throw fail("has no valid data_offsets");
  const auto begin = offsets->front(), end = offsets->back();
  if (begin > end || end > data_bytes) {
    throw fail("claims bytes " + std::to_string(begin) + " to " + std::to_string(end) + " of " +
               std::to_string(data_bytes));
  }
  auto type_name = dtype->get<std::string>();
  if (const auto* type = stored_type(type_name)) {
    auto sizes = *shape;
    sizes.push_back(type->bytes);
    if (weights::checked_product(sizes) != end - begin) {
      throw fail("has " + std::to_string(end - begin) + " bytes, which its shape and type " +
                 type_name + " do not come to");
    }
  } else if (!weights::checked_product(*shape)) {
    throw fail("has an impossible shape");
  }
  return {name, std::move(type_name), *shape, data_begin + begin, end - begin};
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path)
    : file_(std::make_shared<const MappedFile>(path)) {
  const auto bytes = file_->bytes();
  if (bytes.size() < 8) {
    throw damaged(path, "has " + std::to_string(bytes.size()) + " bytes and no header");
  }
  std::uint64_t stated = 0;
  for (std::size_t i = 0; i < 8; ++i) stated |= std::to_integer<std::uint64_t>(bytes[i]) << (8 * i);
  if (stated > static_cast<std::uint64_t>(kMaxHeaderBytes) || stated > bytes.size() - 8) {
    throw damaged(path, "states a header of " + std::to_string(stated) + " bytes in a file of " +
                            std::to_string(bytes.size()));
  }
  const auto header_bytes = static_cast<std::size_t>(stated);
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + 8, header_bytes);
  const auto header = weights::parse_json(text, path, {.depth = 3, .values = 1 << 21});
  if (!header.is_object()) throw damaged(path, "has a header that is not an object");

  const auto data_begin = static_cast<std::int64_t>(8 + header_bytes);
  const auto data_bytes = static_cast<std::int64_t>(bytes.size()) - data_begin;
  for (const auto& [name, value] : header.items()) {
    if (name != "__metadata__") {
      entries_.push_back(entry_in(path, name, value, data_begin, data_bytes));
      continue;
    }
    if (!value.is_object()) throw damaged(path, "has metadata that is not an object");
    for (const auto& [key, item] : value.items()) {
      if (!item.is_string()) {
        throw damaged(path, "has metadata '" + weights::printable(key) + "' that is not text");
      }
      metadata_[key] = item.get<std::string>();
    }
  }

  std::stable_sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.bytes) < std::pair(b.begin, b.bytes);
  });
  auto expected = data_begin;
  for (const auto& entry : entries_) {
    if (entry.begin != expected) {
      throw damaged(path, entry.name,
                    std::string(entry.begin < expected ? "overlaps" : "leaves a hole behind") +
                        " the tensor before it");
    }
    expected = entry.begin + entry.bytes;
  }
  if (expected != data_begin + data_bytes) {
    throw damaged(path, "holds " + std::to_string(data_begin + data_bytes - expected) +
                            " bytes that belong to no tensor");
  }
  for (std::size_t i = 0; i < entries_.size(); ++i) index_.emplace(entries_[i].name, i);
}

const std::filesystem::path& SafetensorsFile::path() const noexcept { return file_->path(); }

const SafetensorsFile::Entry* SafetensorsFile::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &entries_[found->second];
}

bool SafetensorsFile::is_weight(const Entry& entry) {
  const auto* type = stored_type(entry.dtype);
  return type == nullptr || type->is_float;
}

WeightTensor SafetensorsFile::weight(const Entry& entry) const {
  WeightType type{};
  if (entry.dtype == "F32") {
    type = WeightType::f32;
  } else if (entry.dtype == "F16") {
    type = WeightType::f16;
  } else if (entry.dtype == "BF16") {
    type = WeightType::bf16;
  } else {
    throw Error(Errc::unsupported, path().string() + ": tensor '" + weights::printable(entry.name) +
                                       "' has type " + weights::printable(entry.dtype) +
                                       "; weights may be F32, F16 or BF16");
  }
  return {entry.name, type, entry.shape, file_->bytes().data() + entry.begin, entry.bytes, file_};
}

std::map<std::string, at::Tensor> read_safetensors(const std::filesystem::path& path,
                                                   std::map<std::string, std::string>* metadata) {
  const SafetensorsFile file(path);
  std::map<std::string, at::Tensor> tensors;
  for (const auto& entry : file.entries()) {
    const auto* type = stored_type(entry.dtype);
    if (type == nullptr || !type->scalar) {
      throw Error(Errc::unsupported, path.string() + ": tensor '" + weights::printable(entry.name) +
                                         "' has type " + weights::printable(entry.dtype) +
                                         ", which is not supported");
    }
    auto tensor = at::empty(entry.shape, *type->scalar);
    auto* to = static_cast<std::byte*>(tensor.mutable_data_ptr());
    const auto from = file.file()->bytes().subspan(static_cast<std::size_t>(entry.begin),
                                                   static_cast<std::size_t>(entry.bytes));
    if (type->scalar == at::kBool) {
      // A bool that is neither 0 nor 1 is undefined behaviour from here on.
      std::transform(from.begin(), from.end(), to,
                     [](std::byte b) { return std::byte{b != std::byte{0}}; });
    } else if (!from.empty()) {
      std::memcpy(to, from.data(), from.size());
    }
    tensors.emplace(entry.name, std::move(tensor));
  }
  if (metadata != nullptr) *metadata = file.metadata();
  return tensors;
}

void write_safetensors(const std::filesystem::path& path,
                       const std::map<std::string, at::Tensor>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  struct Item {
    const std::string* name;
    const at::Tensor* tensor;
    const StoredType* type;
  };
  std::vector<Item> items;
  for (const auto& [name, tensor] : tensors) {
    const auto shown = path.string() + ": tensor '" + weights::printable(name) + "' ";
    if (name.empty() || name == "__metadata__" ||
        static_cast<std::int64_t>(name.size()) > weights::kMaxNameBytes) {
      throw Error(Errc::invalid, shown + "cannot be written under that name");
    }
    if (!tensor.defined()) throw Error(Errc::invalid, shown + "is undefined");
    const auto* type =
        tensor.layout() == at::kStrided ? stored_type(tensor.scalar_type()) : nullptr;
    if (type == nullptr) {
      throw Error(Errc::unsupported, shown + "is " + c10::toString(tensor.scalar_type()) +
                                         (tensor.layout() == at::kStrided ? "" : " and not dense") +
                                         ", which safetensors cannot hold here");
    }
    items.push_back({&name, &tensor, type});
  }
  // Wide types first: every tensor is then aligned to its own size.
  std::stable_sort(items.begin(), items.end(),
                   [](const Item& a, const Item& b) { return a.type->bytes > b.type->bytes; });

  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::int64_t offset = 0;
  for (const auto& item : items) {
    const auto end = offset + item.tensor->numel() * item.type->bytes;
    header[*item.name] = {{"dtype", item.type->name},
                          {"shape", item.tensor->sizes().vec()},
                          {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const nlohmann::json::exception&) {
    throw Error(Errc::invalid,
                path.string() + ": a tensor name or a metadata text is not valid UTF-8");
  }
  text.resize((text.size() + 7) / 8 * 8, ' ');
  if (static_cast<std::int64_t>(text.size()) > kMaxHeaderBytes) {
    throw Error(Errc::full, path.string() + ": the header would take " +
                                std::to_string(text.size()) + " bytes; the format allows " +
                                std::to_string(kMaxHeaderBytes));
  }

  AtomicFile file(path);
  std::array<std::byte, 8> length{};
  for (std::size_t i = 0; i < 8; ++i) length[i] = static_cast<std::byte>(text.size() >> (8 * i));
  file.write(length);
  file.write(std::as_bytes(std::span(text)));
  for (const auto& item : items) {
    const auto plain = item.tensor->detach().to(at::kCPU).contiguous();
    file.write({static_cast<const std::byte*>(plain.const_data_ptr()), plain.nbytes()});
  }
  file.commit();
}

}  // namespace mneme
