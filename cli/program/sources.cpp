#include "cli/program/sources.h"

#include "mneme/core/error.h"

#include "cli/program/input.h"
#include "cli/program/interrupt.h"
#include "cli/program/output.h"
#include <algorithm>
#include <filesystem>
#include <fmt/format.h>
#include <map>
#include <optional>
#include <utility>

namespace mneme::cli {
namespace {

namespace fs = std::filesystem;

constexpr const char* kInputLabel = "stdin";
// Texts that are in memory together.
constexpr std::int64_t kBatchBytes = std::int64_t{128} << 20;

std::int64_t bytes_of(const fs::path& path) {
  std::error_code error;
  const auto size = fs::file_size(path, error);
  return error ? 0 : static_cast<std::int64_t>(size);
}

/// A path from the current directory on, where it leads into it: so a file has one label whether its path is relative or
/// absolute (read through a folder it is named from there). Others stay as they were given, since nothing shorter tells
/// them apart.
std::string label_of_file(const fs::path& file) {
  const auto given = file.lexically_normal();
  if (given.is_relative() && *given.begin() != "..") return given.generic_string();
  std::error_code no_here, no_folder;
  const auto here = fs::canonical(fs::current_path(no_here), no_here),
             folder = fs::canonical(given.parent_path(), no_folder);  // links to a file stay
  if (no_here || no_folder) return given.generic_string();
  const auto inside = (folder / given.filename()).lexically_relative(here);
  return inside.empty() || *inside.begin() == ".." ? given.generic_string()
                                                   : inside.generic_string();
}

/// "fd/63" for "/dev/fd/63", the shell's name for a pipe: no place where a reader of citations could look.
std::optional<std::string> label_of_descriptor(const fs::path& path) {
  const auto folder = path.parent_path();
  if (folder != "/dev/fd" && folder != "/proc/self/fd") return std::nullopt;
  return "fd/" + path.filename().string();
}

/// What a file within a given folder is cited as: from the folder's own name on, so that the folder read again from
/// elsewhere has the same labels.
std::string label_of(const fs::path& given, const fs::path& file) {
  std::error_code error;
  if (!fs::is_directory(given, error)) return label_of_file(file);
  const auto folder = fs::canonical(given, error);
  const auto inside = file.lexically_relative(given).generic_string();
  return error || !folder.has_filename() ? inside
                                         : folder.filename().generic_string() + "/" + inside;
}

/// Whether a path gives its bytes once, and when it likes: a pipe or a device.
bool reads_once(const fs::path& path) {
  std::error_code error;
  const auto status = fs::status(path, error);
  return fs::is_fifo(status) || fs::is_character_file(status);
}

/// A document; what could be read only once is in `held`, and taken from there.
Document load(const Source& source, std::string& held) {
  stop_if_interrupted();
  return source.once ? document_from_text(source.label, std::exchange(held, {}))
                     : read_document(source.path, source.label);
}

}  // namespace

std::string describe_skipped(const std::vector<SkippedFile>& skipped) {
  if (skipped.empty()) return "";
  std::map<std::string, std::int64_t> reasons;
  for (const auto& file : skipped) ++reasons[file.reason];
  if (skipped.size() == 1)
    return fmt::format("1 file left out: {}: {}", skipped.front().path.generic_string(),
                       skipped.front().reason);
  std::vector<std::pair<std::int64_t, std::string>> by_count;
  for (const auto& [reason, n] : reasons) by_count.emplace_back(-n, reason);
  std::sort(by_count.begin(), by_count.end());
  auto out = counted(static_cast<std::int64_t>(skipped.size()), "file") + " left out:";
  for (const auto& [n, reason] : by_count)
    out += fmt::format("{} {} {}", out.back() == ':' ? "" : ",", with_separators(-n), reason);
  return out;
}

Sources list_sources(const std::vector<std::string>& paths, const std::string& label) {
  Sources out;
  for (const auto& path : paths) {
    if (path == "-") {
      out.sources.push_back({.path = "", .label = kInputLabel, .once = true});
      continue;
    }
    auto listing = list_documents(path);
    std::error_code error;
    if (fs::is_directory(path, error) && listing.files.empty()) {
      throw Error(Errc::invalid, fmt::format("{}: holds no text to read{}{}", path,
                                             listing.skipped.empty() ? "" : "; ",
                                             describe_skipped(listing.skipped)));
    }
    for (const auto& file : listing.files) {
      Source source{file.string(), label_of(path, file), bytes_of(file)};
      source.once = reads_once(file);
      if (file == "/dev/stdin") source.label = kInputLabel;
      if (auto descriptor = label_of_descriptor(file)) {
        source.label = std::move(*descriptor);
        source.nameless = true;
      }
      out.sources.push_back(std::move(source));
    }
    out.skipped.insert(out.skipped.end(), std::make_move_iterator(listing.skipped.begin()),
                       std::make_move_iterator(listing.skipped.end()));
  }
  if (!label.empty()) {
    const auto once = [](const Source& source) { return source.once; };
    auto named = out.sources.begin();
    if (out.sources.size() != 1) {
      if (std::count_if(named, out.sources.end(), once) != 1)
        throw Error(Errc::usage,
                    fmt::format("--label names one source, and these are {}", out.sources.size()));
      named = std::find_if(named, out.sources.end(), once);
    }
    named->label = label;
    named->nameless = false;
  }
  std::vector<std::string> labels;
  for (const auto& source : out.sources) labels.push_back(source.label);
  check_labels(labels);
  return out;
}

void for_documents(const std::vector<Source>& sources,
                   const std::function<bool(std::vector<Document>)>& each) {
  std::vector<std::string> held(sources.size());
  std::int64_t bytes = 0;
  for (std::size_t i = 0; i < sources.size(); ++i) {
    const auto& source = sources[i];
    if (source.path.empty()) {
      held[i] = read_input(kMaxDocumentBytes);
    } else if (source.once) {
      held[i] = read_pipe(source.path, source.label, kMaxDocumentBytes);
    }
    bytes += source.bytes;
  }
  std::vector<Document> batch;
  if (bytes <= kBatchBytes) {
    for (std::size_t i = 0; i < sources.size(); ++i) batch.push_back(load(sources[i], held[i]));
    each(std::move(batch));
    return;
  }
  for (std::size_t i = 0; i < sources.size(); ++i) {
    auto copy = held[i];
    load(sources[i], copy);
  }
  std::int64_t batch_bytes = 0;
  for (std::size_t i = 0; i < sources.size(); ++i) {
    batch.push_back(load(sources[i], held[i]));
    batch_bytes += static_cast<std::int64_t>(batch.back().text.size());
    if (batch_bytes < kBatchBytes && i + 1 < sources.size()) continue;
    batch_bytes = 0;
    if (!each(std::exchange(batch, {}))) return;
  }
}

}  // namespace mneme::cli
