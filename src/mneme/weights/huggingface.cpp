#include "mneme/weights/huggingface.h"

#include "mneme/core/error.h"
#include "mneme/core/nearest.h"
#include "mneme/weights/digests.h"
#include "mneme/weights/mapped_file.h"
#include "mneme/weights/safetensors.h"
#include "mneme/weights/untrusted.h"

#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <system_error>
#include <unordered_map>
#include <utility>

namespace mneme::weights {
namespace {

namespace fs = std::filesystem;

/// One or more safetensors files looked at as one.
class SafetensorsCheckpoint : public Checkpoint {
 public:
  [[nodiscard]] fs::path path() const override { return path_; }
  [[nodiscard]] const nlohmann::json& metadata() const override { return metadata_; }

  [[nodiscard]] std::vector<std::string> names() const override {
    std::vector<std::string> names;
    for (const auto& file : files_) {
      for (const auto& entry : file->entries()) {
        if (SafetensorsFile::is_weight(entry)) names.push_back(entry.name);
      }
    }
    return names;
  }

  [[nodiscard]] bool has(std::string_view name) const override {
    const auto found = index_.find(name);
    return found != index_.end() && SafetensorsFile::is_weight(*found->second.second);
  }

  [[nodiscard]] WeightTensor tensor(std::string_view name) const override {
    const auto found = index_.find(name);
    if (found == index_.end()) {
      throw Error(Errc::not_found, path_.string() + ": has no tensor '" + printable(name) + "'" +
                                       did_you_mean(name, names()));
    }
    return found->second.first->weight(*found->second.second);
  }

 protected:
  explicit SafetensorsCheckpoint(fs::path path) : path_(std::move(path)) {}

  void add(std::unique_ptr<SafetensorsFile> file) {
    for (const auto& entry : file->entries()) {
      if (!index_.emplace(entry.name, std::pair(file.get(), &entry)).second) {
        throw Error(Errc::corrupt, file->path().string() + ": tensor '" + printable(entry.name) +
                                       "' is also in another file of the model");
      }
    }
    files_.push_back(std::move(file));
  }

  fs::path path_;
  nlohmann::json metadata_ = nlohmann::json::object();
  std::vector<std::unique_ptr<SafetensorsFile>> files_;

 private:
  // Keys are views of the entries' names, which live as long as files_.
  std::unordered_map<std::string_view,
                     std::pair<const SafetensorsFile*, const SafetensorsFile::Entry*>>
      index_;
};

class SingleFile final : public SafetensorsCheckpoint {
 public:
  explicit SingleFile(const fs::path& path) : SafetensorsCheckpoint(path) {
    add(std::make_unique<SafetensorsFile>(path));
    metadata_ = files_.front()->metadata();
  }
  [[nodiscard]] std::string format() const override { return "safetensors"; }
  [[nodiscard]] std::string digest() const override { return file_digest(*files_.front()->file()); }
};

bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

class Directory final : public SafetensorsCheckpoint {
 public:
  explicit Directory(const fs::path& path) : SafetensorsCheckpoint(path), model_(path) {
    read_modules();
    if (!is_there(model_ / "config.json")) {
      throw Error(
          Errc::not_found,
          path.string() + ": has no config.json: this is not a Hugging Face model directory");
    }
    metadata_["config"] = configuration(model_ / "config.json");
    // The tokenizer's and the sampler's business, without effect on what the weights compute.
    for (const auto* name :
         {"generation_config", "tokenizer_config", "config_sentence_transformers"}) {
      const auto file = std::string(name) + ".json";
      for (const auto& folder : {model_, path_}) {
        if (!metadata_.contains(name) && is_there(folder / file)) {
          metadata_[name] = read_json(MappedFile(folder / file));
        }
      }
    }
    open_weights();
  }

  [[nodiscard]] std::string format() const override { return "huggingface"; }

  [[nodiscard]] std::string digest() const override {
    const std::lock_guard lock(digest_mutex_);
    if (digest_.empty()) {
      auto digests = configuration_digests_;
      for (const auto& file : module_weights_) digests[file] = file_digest(file);
      for (const auto& file : files_) digests[file->path()] = file_digest(*file->file());
      Sha256 sum;
      for (const auto& [file, digest] : digests) {
        sum.update(file.lexically_relative(path_).generic_string())
            .update(std::string_view("\0", 1))
            .update(digest + "\n");
      }
      digest_ = sum.hex();
    }
    return digest_;
  }

 private:
  // Reads a file that the digest covers; hashed from the same bytes, it cannot change in between.
  nlohmann::json configuration(const fs::path& path) {
    const MappedFile file(path);
    configuration_digests_[path] = sha256_hex(file.bytes());
    return read_json(file);
  }

  // sentence-transformers: modules.json lists what follows the transformer, each with a folder and
  // its own config.json.
  void read_modules() {
    const auto list = path_ / "modules.json";
    if (!is_there(list)) return;
    const auto& modules = metadata_["modules"] = configuration(list);
    const auto fail = [&] {
      return Error(Errc::corrupt,
                   list.string() + ": is not a list of modules with a path and a type");
    };
    if (!modules.is_array()) throw fail();
    for (const auto& module : modules) {
      if (!module.is_object()) throw fail();
      const auto folder_text = module.find("path"), type_text = module.find("type");
      if (folder_text == module.end() || type_text == module.end() || !folder_text->is_string() ||
          !type_text->is_string()) {
        throw fail();
      }
      const fs::path below(folder_text->get<std::string>());
      if (!below.empty() && !stays_inside(below)) throw fail();
      const auto folder = below.empty() ? path_ : path_ / below;
      const auto type = type_text->get<std::string>();
      const auto kind = type.substr(type.rfind('.') + 1);
      if (kind == "Transformer") {
        model_ = folder;
        if (const auto limits = folder / "sentence_bert_config.json"; is_there(limits)) {
          metadata_["sentence_bert_config"] = configuration(limits);
        }
        continue;
      }
      if (below.empty()) continue;
      if (const auto config = folder / "config.json"; is_there(config)) {
        auto options = configuration(config);
        if (kind == "Pooling") metadata_["pooling"] = std::move(options);
      }
      if (const auto weights = folder / "model.safetensors"; is_there(weights)) {
        module_weights_.insert(weights);
      }
    }
  }

  void open_weights() {
    const auto single = model_ / "model.safetensors",
               list = model_ / "model.safetensors.index.json";
    if (is_there(single)) return add(std::make_unique<SafetensorsFile>(single));
    if (!is_there(list)) {
      const bool pickled = is_there(model_ / "pytorch_model.bin") ||
                           is_there(model_ / "pytorch_model.bin.index.json");
      throw Error(
          pickled ? Errc::unsupported : Errc::not_found,
          model_.string() + ": has neither model.safetensors nor model.safetensors.index.json" +
              (pickled
                   ? "; pytorch_model.bin runs code when it is read: save the model as safetensors"
                   : ""));
    }
    const auto index = configuration(list);
    const auto fail = [&](const std::string& what) {
      return Error(Errc::corrupt, list.string() + ": " + what);
    };
    const auto map = index.is_object() ? index.find("weight_map") : index.end();
    if (!index.is_object() || map == index.end() || !map->is_object()) {
      throw fail("has no weight_map");
    }
    std::map<std::string, std::vector<std::string>> shards;
    for (const auto& [name, file] : map->items()) {
      if (!file.is_string()) {
        throw fail("maps '" + printable(name) + "' to something that is no file name");
      }
      shards[file.get<std::string>()].push_back(name);
    }
    for (const auto& [file, names] : shards) {
      if (!stays_inside(file)) {
        throw fail("names the file '" + printable(file) + "', which is not below its folder");
      }
      auto shard = std::make_unique<SafetensorsFile>(model_ / file);
      for (const auto& name : names) {
        if (shard->find(name) == nullptr) {
          throw fail("says that '" + printable(name) + "' is in " + printable(file) +
                     ", and it is not");
        }
      }
      add(std::move(shard));
    }
  }

  fs::path model_;  // where config.json and the weights lie
  std::map<fs::path, std::string> configuration_digests_;
  std::set<fs::path> module_weights_;  // of the modules that follow the transformer
  mutable std::mutex digest_mutex_;
  mutable std::string digest_;
};

}  // namespace

std::unique_ptr<Checkpoint> open_safetensors(const fs::path& path) {
  return std::make_unique<SingleFile>(path);
}

std::unique_ptr<Checkpoint> open_huggingface(const fs::path& directory) {
  return std::make_unique<Directory>(directory);
}

}  // namespace mneme::weights
