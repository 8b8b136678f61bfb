// Layout, all numbers little-endian:
//   "GGUF"  u32 version  u64 tensor count  u64 pair count
//   pairs:    string key, u32 value type, value        string = u64 length, bytes
//   tensors:  string name, u32 n, u64 size[n] fastest first, u32 type, u64 offset in the data
//   padding to general.alignment (32 unless given), data
#include "mneme/weights/gguf.h"

#include "mneme/core/error.h"
#include "mneme/core/nearest.h"
#include "mneme/weights/digests.h"
#include "mneme/weights/mapped_file.h"
#include "mneme/weights/untrusted.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>

namespace mneme::weights {
namespace {

static_assert(std::endian::native == std::endian::little,
              "numbers of the file are used as they lie in memory");

constexpr std::uint32_t kMaxDimensions = 8;   // the format's writers stop at 4
constexpr std::int64_t kMaxKeyBytes = 65535;  // the format's own bound
// Values are worth 16 bytes and more in memory each; vocabularies, by far the longest lists, have
// below a million.
constexpr std::int64_t kMaxValues = 1 << 24;
constexpr int kMaxNesting = 8;

enum class Value : std::uint32_t {
  u8,
  i8,
  u16,
  i16,
  u32,
  i32,
  f32,
  boolean,
  string,
  array,
  u64,
  i64,
  f64
};
constexpr std::uint32_t kValueTypes = 13;

// Bytes that a value takes at least, for bounding a list's length before it is read.
constexpr std::array<std::int64_t, kValueTypes> kLeastBytes{1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8};

struct TensorType {
  std::uint32_t id;
  std::string_view name;
  std::optional<WeightType> type;
};
constexpr std::array<TensorType, 36> kTensorTypes{{
    {0, "F32", WeightType::f32},    {1, "F16", WeightType::f16},    {2, "Q4_0", WeightType::q4_0},
    {3, "Q4_1", WeightType::q4_1},  {6, "Q5_0", std::nullopt},      {7, "Q5_1", std::nullopt},
    {8, "Q8_0", WeightType::q8_0},  {9, "Q8_1", std::nullopt},      {10, "Q2_K", std::nullopt},
    {11, "Q3_K", std::nullopt},     {12, "Q4_K", std::nullopt},     {13, "Q5_K", std::nullopt},
    {14, "Q6_K", std::nullopt},     {15, "Q8_K", std::nullopt},     {16, "IQ2_XXS", std::nullopt},
    {17, "IQ2_XS", std::nullopt},   {18, "IQ3_XXS", std::nullopt},  {19, "IQ1_S", std::nullopt},
    {20, "IQ4_NL", std::nullopt},   {21, "IQ3_S", std::nullopt},    {22, "IQ2_S", std::nullopt},
    {23, "IQ4_XS", std::nullopt},   {24, "I8", std::nullopt},       {25, "I16", std::nullopt},
    {26, "I32", std::nullopt},      {27, "I64", std::nullopt},      {28, "F64", std::nullopt},
    {29, "IQ1_M", std::nullopt},    {30, "BF16", WeightType::bf16}, {31, "Q4_0_4_4", std::nullopt},
    {32, "Q4_0_4_8", std::nullopt}, {33, "Q4_0_8_8", std::nullopt}, {34, "TQ1_0", std::nullopt},
    {35, "TQ2_0", std::nullopt},    {39, "MXFP4", std::nullopt},    {40, "NVFP4", std::nullopt},
}};

std::string type_name(std::uint32_t id) {
  for (const auto& type : kTensorTypes) {
    if (type.id == id) return std::string(type.name);
  }
  return "number " + std::to_string(id);
}

std::optional<WeightType> weight_type(std::uint32_t id) {
  for (const auto& type : kTensorTypes) {
    if (type.id == id) return type.type;
  }
  return std::nullopt;
}

bool is_integer(std::uint32_t id) { return id >= 24 && id <= 27; }

// Reads forward through the file and never past its end.
class Cursor {
 public:
  Cursor(std::span<const std::byte> bytes, const std::filesystem::path& path)
      : bytes_(bytes), path_(path) {}

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  [[nodiscard]] std::int64_t position() const { return position_; }
  [[nodiscard]] std::int64_t left() const {
    return static_cast<std::int64_t>(bytes_.size()) - position_;
  }
  [[nodiscard]] Error damaged(const std::string& what) const {
    return Error(Errc::corrupt,
                 path_.string() + ": " + what + ": the GGUF file is truncated or damaged");
  }

  template <class T>
  T number(const char* what) {
    if (left() < static_cast<std::int64_t>(sizeof(T))) throw ends_in(what);
    T value;
    std::memcpy(&value, bytes_.data() + position_, sizeof value);
    position_ += static_cast<std::int64_t>(sizeof value);
    return value;
  }

  // How many of something that takes `least_bytes` each follow.
  std::int64_t count(const char* what, std::int64_t least_bytes) {
    const auto stated = number<std::uint64_t>(what);
    if (stated > static_cast<std::uint64_t>(left() / least_bytes)) {
      throw damaged("states " + std::to_string(stated) + " for the " + what + " at byte " +
                    std::to_string(position_ - 8) + ", more than the file of " +
                    std::to_string(bytes_.size()) + " bytes holds");
    }
    return static_cast<std::int64_t>(stated);
  }

  std::string_view string(const char* what) {
    const auto size = count(what, 1);
    const std::string_view text(reinterpret_cast<const char*>(bytes_.data()) + position_,
                                static_cast<std::size_t>(size));
    position_ += size;
    return text;
  }

 private:
  [[nodiscard]] Error ends_in(const char* what) const {
    return damaged("ends inside the " + std::string(what) + " at byte " +
                   std::to_string(position_));
  }

  std::span<const std::byte> bytes_;
  const std::filesystem::path& path_;
  std::int64_t position_ = 0;
};

class MetadataReader {
 public:
  explicit MetadataReader(Cursor& in) : in_(in) {}

  nlohmann::json pairs(std::int64_t count) {
    auto all = nlohmann::json::object();
    auto& object = all.get_ref<nlohmann::json::object_t&>();
    for (std::int64_t i = 0; i < count; ++i) {
      const auto key = in_.string("length of a metadata key");
      if (key.empty() || static_cast<std::int64_t>(key.size()) > kMaxKeyBytes) {
        throw in_.damaged("has a metadata key of " + std::to_string(key.size()) + " bytes");
      }
      auto value = this->value(type(), 0);
      if (!object.emplace(std::string(key), std::move(value)).second) {
        throw in_.damaged("has the metadata key '" + printable(key) + "' twice");
      }
    }
    return all;
  }

 private:
  Value type() {
    const auto id = in_.number<std::uint32_t>("type of a metadata value");
    if (id >= kValueTypes) {
      throw in_.damaged("has a metadata value of the unknown type " + std::to_string(id));
    }
    return static_cast<Value>(id);
  }

  nlohmann::json value(Value type, int depth) {
    constexpr const char* kWhat = "value of a metadata pair";
    if (++values_ > kMaxValues) {
      throw in_.damaged("has more than " + std::to_string(kMaxValues) + " metadata values");
    }
    switch (type) {
      case Value::u8:
        return in_.number<std::uint8_t>(kWhat);
      case Value::i8:
        return in_.number<std::int8_t>(kWhat);
      case Value::u16:
        return in_.number<std::uint16_t>(kWhat);
      case Value::i16:
        return in_.number<std::int16_t>(kWhat);
      case Value::u32:
        return in_.number<std::uint32_t>(kWhat);
      case Value::i32:
        return in_.number<std::int32_t>(kWhat);
      case Value::f32:
        return in_.number<float>(kWhat);
      case Value::boolean:
        return boolean(kWhat);
      case Value::string:
        return std::string(in_.string("length of a metadata text"));
      case Value::array:
        return array(depth + 1);
      case Value::u64:
        return in_.number<std::uint64_t>(kWhat);
      case Value::i64:
        return in_.number<std::int64_t>(kWhat);
      case Value::f64:
        return in_.number<double>(kWhat);
    }
    throw in_.damaged("has a metadata value of an unknown type");
  }

  nlohmann::json boolean(const char* what) {
    const auto byte = in_.number<std::uint8_t>(what);
    if (byte > 1) throw in_.damaged("has a boolean of value " + std::to_string(byte));
    return byte == 1;
  }

  nlohmann::json array(int depth) {
    if (depth > kMaxNesting) {
      throw in_.damaged("nests metadata lists deeper than " + std::to_string(kMaxNesting));
    }
    const auto item = type();
    const auto count =
        in_.count("length of a metadata list", kLeastBytes[static_cast<std::size_t>(item)]);
    auto list = nlohmann::json::array();
    auto& items = list.get_ref<nlohmann::json::array_t&>();
    items.reserve(static_cast<std::size_t>(std::min(count, kMaxValues - values_)));
    for (std::int64_t i = 0; i < count; ++i) items.push_back(value(item, depth));
    return list;
  }

  Cursor& in_;
  std::int64_t values_ = 0;
};

class GgufCheckpoint final : public Checkpoint {
 public:
  explicit GgufCheckpoint(const std::filesystem::path& path)
      : file_(std::make_shared<const MappedFile>(path)) {
    Cursor in(file_->bytes(), file_->path());
    const auto [tensors, pairs] = read_start(in);
    metadata_ = MetadataReader(in).pairs(pairs);
    if (const auto parts = metadata_.find("split.count");
        parts != metadata_.end() && parts->is_number_unsigned() && *parts > 1U) {
      throw Error(Errc::unsupported,
                  path.string() + ": is one part of a model that was split into " + parts->dump() +
                      " files; join them first (llama-gguf-split --merge)");
    }
    read_tensors(in, tensors);
    place_tensors(in);
  }

  [[nodiscard]] std::string format() const override { return "gguf"; }
  [[nodiscard]] std::filesystem::path path() const override { return file_->path(); }
  [[nodiscard]] const nlohmann::json& metadata() const override { return metadata_; }
  [[nodiscard]] std::string digest() const override { return file_digest(*file_); }

  [[nodiscard]] std::vector<std::string> names() const override {
    std::vector<std::string> names;
    for (const auto& entry : entries_) {
      if (!is_integer(entry.type_id)) names.push_back(entry.weight.name);
    }
    return names;
  }

  [[nodiscard]] bool has(std::string_view name) const override {
    const auto found = index_.find(name);
    return found != index_.end() && !is_integer(entries_[found->second].type_id);
  }

  [[nodiscard]] WeightTensor tensor(std::string_view name) const override {
    const auto found = index_.find(name);
    if (found == index_.end()) {
      throw Error(Errc::not_found, file_->path().string() + ": has no tensor '" + printable(name) +
                                       "'" + did_you_mean(name, names()));
    }
    const auto& entry = entries_[found->second];
    if (!weight_type(entry.type_id)) {
      throw Error(Errc::unsupported,
                  file_->path().string() + ": tensor '" + printable(name) + "' has type " +
                      type_name(entry.type_id) +
                      "; supported are F32, F16, BF16, Q8_0, Q4_0 and Q4_1 (requantize the model)");
    }
    return entry.weight;
  }

 private:
  struct Entry {
    WeightTensor weight;
    std::uint32_t type_id = 0;
    std::uint64_t offset = 0;  // from the start of the data
  };
  struct Counts {
    std::int64_t tensors, pairs;
  };

  static Counts read_start(Cursor& in) {
    const auto magic = in.number<std::array<char, 4>>("magic");
    if (std::string_view(magic.data(), 4) != "GGUF") throw in.damaged("does not begin with 'GGUF'");
    const auto version = in.number<std::uint32_t>("version");
    if (version != 2 && version != 3) {
      const bool swapped = version != 0 && (version & 0xffff) == 0;
      throw Error(
          Errc::unsupported,
          in.path().string() + (swapped ? ": is a big-endian GGUF file; little-endian is supported"
                                        : ": has GGUF version " + std::to_string(version) +
                                              "; versions 2 and 3 are supported"));
    }
    const auto tensors = in.count("number of tensors", 8 + 4 + 4 + 8);
    const auto pairs = in.count("number of metadata pairs", 8 + 1 + 4 + 1);
    return {tensors, pairs};
  }
  void read_tensors(Cursor& in, std::int64_t count) {
    entries_.reserve(static_cast<std::size_t>(count));
    for (std::int64_t i = 0; i < count; ++i) {
      Entry entry;
      auto& weight = entry.weight;
      weight.name = in.string("length of a tensor name");
      const auto fail = [&](const std::string& what) {
        return in.damaged("tensor '" + printable(weight.name) + "' " + what);
      };
      if (weight.name.empty() || static_cast<std::int64_t>(weight.name.size()) > kMaxNameBytes) {
        throw fail("has a name of " + std::to_string(weight.name.size()) + " bytes");
      }
      const auto dimensions = in.number<std::uint32_t>("number of dimensions");
      if (dimensions > kMaxDimensions) {
        throw fail("has " + std::to_string(dimensions) + " dimensions");
      }
      for (std::uint32_t d = 0; d < dimensions; ++d) {
        const auto size = in.number<std::uint64_t>("size of a dimension");
        if (size > static_cast<std::uint64_t>(INT64_MAX)) {
          throw fail("has a dimension of " + std::to_string(size));
        }
        weight.shape.push_back(static_cast<std::int64_t>(size));
      }
      std::reverse(weight.shape.begin(), weight.shape.end());
      entry.type_id = in.number<std::uint32_t>("type of a tensor");
      entry.offset = in.number<std::uint64_t>("offset of a tensor");
      const auto elements = checked_product(weight.shape);
      if (!elements) throw fail("has an impossible shape");
      if (const auto type = weight_type(entry.type_id)) {
        weight.type = *type;
        const auto row = weight.shape.empty() ? 1 : weight.shape.back();
        if (row % block_size(*type) != 0) {
          throw fail("has rows of " + std::to_string(row) +
                     " numbers, which are no whole blocks of " + type_name(entry.type_id));
        }
        if (__builtin_mul_overflow(*elements / block_size(*type), block_bytes(*type),
                                   &weight.bytes)) {
          throw fail("has an impossible shape");
        }
      }
      entries_.push_back(std::move(entry));
    }
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      if (!index_.emplace(entries_[i].weight.name, i).second) {
        throw in.damaged("tensor '" + printable(entries_[i].weight.name) + "' is there twice");
      }
    }
  }

  [[nodiscard]] std::uint64_t alignment(const Cursor& in) const {
    const auto given = metadata_.find("general.alignment");
    if (given == metadata_.end()) return 32;
    if (!given->is_number_unsigned() || !std::has_single_bit(given->get<std::uint64_t>()) ||
        given->get<std::uint64_t>() > (1U << 30)) {
      throw in.damaged("has a general.alignment that is no power of two");
    }
    return given->get<std::uint64_t>();
  }

  // Turns offsets into addresses: aligned, inside the file, without overlap.
  void place_tensors(const Cursor& in) {
    const auto unit = alignment(in);
    const auto size = static_cast<std::uint64_t>(file_->bytes().size());
    const auto begin = (static_cast<std::uint64_t>(in.position()) + unit - 1) / unit * unit;
    const auto available = begin < size ? size - begin : 0;
    std::vector<std::pair<std::uint64_t, const Entry*>> placed;
    for (auto& entry : entries_) {
      auto& weight = entry.weight;
      const auto bytes = static_cast<std::uint64_t>(weight.bytes);
      if (entry.offset % unit != 0 || entry.offset > available ||
          bytes > available - entry.offset) {
        throw in.damaged("tensor '" + printable(weight.name) + "' claims " + std::to_string(bytes) +
                         " bytes at offset " + std::to_string(entry.offset) + " of " +
                         std::to_string(available) + " bytes of data");
      }
      if (bytes == 0) continue;  // an unsupported type's size is not known
      weight.data = file_->bytes().data() + begin + entry.offset;
      weight.owner = file_;
      placed.emplace_back(entry.offset, &entry);
    }
    std::sort(placed.begin(), placed.end());
    for (std::size_t i = 1; i < placed.size(); ++i) {
      const auto& before = placed[i - 1].second->weight;
      if (placed[i].first < placed[i - 1].first + static_cast<std::uint64_t>(before.bytes)) {
        throw in.damaged("tensor '" + printable(placed[i].second->weight.name) + "' overlaps '" +
                         printable(before.name) + "'");
      }
    }
  }

  std::shared_ptr<const MappedFile> file_;
  nlohmann::json metadata_;
  std::vector<Entry> entries_;
  std::unordered_map<std::string_view, std::size_t>
      index_;  // keys are views of entries_[..].weight.name
};

}  // namespace

std::unique_ptr<Checkpoint> open_gguf(const std::filesystem::path& path) {
  return std::make_unique<GgufCheckpoint>(path);
}

}  // namespace mneme::weights
