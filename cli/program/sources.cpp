#include "cli/program/sources.h"

#include "mneme/core/error.h"

#include "cli/program/input.h"
#include "cli/program/interrupt.h"
#include "cli/program/output.h"
#include <algorithm>
#include <filesystem>
#include <fmt/format.h>
#include <map>
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

/// What a file is cited as: its path as given, and within a folder that was given, from the folder's own name on. So a
/// memory holds no paths of the machine it was made on, and the folder read again from elsewhere has the same labels.
std::string label_of(const fs::path& given, const fs::path& file) {
  std::error_code error;
  if (!fs::is_directory(given, error)) return file.lexically_normal().generic_string();
  const auto folder = fs::canonical(given, error);
  const auto inside = file.lexically_relative(given).generic_string();
  return error || !folder.has_filename() ? inside
                                         : folder.filename().generic_string() + "/" + inside;
}

Document load(const Source& source, std::string& input) {
  stop_if_interrupted();
  return source.path.empty() ? document_from_text(source.label, std::exchange(input, {}))
                             : read_document(source.path, source.label);
}

}  // namespace

std::string describe_skipped(const std::vector<SkippedFile>& skipped) {
  if (skipped.empty()) return "";
  std::map<std::string, std::int64_t> reasons;
  for (const auto& file : skipped) ++reasons[file.reason];
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
      out.sources.push_back({"", kInputLabel, 0});
      continue;
    }
    auto listing = list_documents(path);
    std::error_code error;
    if (fs::is_directory(path, error) && listing.files.empty()) {
      throw Error(Errc::invalid, fmt::format("{}: holds no text to read{}{}", path,
                                             listing.skipped.empty() ? "" : "; ",
                                             describe_skipped(listing.skipped)));
    }
    for (const auto& file : listing.files)
      out.sources.push_back({file.string(), label_of(path, file), bytes_of(file)});
    out.skipped.insert(out.skipped.end(), std::make_move_iterator(listing.skipped.begin()),
                       std::make_move_iterator(listing.skipped.end()));
  }
  if (!label.empty()) {
    const auto input = std::find_if(out.sources.begin(), out.sources.end(),
                                    [](const Source& s) { return s.path.empty(); });
    if (out.sources.size() == 1) {
      out.sources.front().label = label;
    } else if (input != out.sources.end()) {
      input->label = label;
    } else {
      throw Error(Errc::usage,
                  fmt::format("--label names one source, and these are {}", out.sources.size()));
    }
  }
  std::vector<std::string> labels;
  for (const auto& source : out.sources) labels.push_back(source.label);
  check_labels(labels);
  return out;
}

void for_documents(const std::vector<Source>& sources,
                   const std::function<bool(std::vector<Document>)>& each) {
  std::string input;
  std::int64_t bytes = 0;
  for (const auto& source : sources) {
    if (source.path.empty()) input = read_input(kMaxDocumentBytes);
    bytes += source.bytes;
  }
  std::vector<Document> batch;
  if (bytes <= kBatchBytes) {
    for (const auto& source : sources) batch.push_back(load(source, input));
    each(std::move(batch));
    return;
  }
  for (const auto& source : sources) {
    auto copy = input;
    load(source, copy);
  }
  std::int64_t held = 0;
  for (std::size_t i = 0; i < sources.size(); ++i) {
    batch.push_back(load(sources[i], input));
    held += static_cast<std::int64_t>(batch.back().text.size());
    if (held < kBatchBytes && i + 1 < sources.size()) continue;
    held = 0;
    if (!each(std::exchange(batch, {}))) return;
  }
}

}  // namespace mneme::cli
