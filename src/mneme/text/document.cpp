#include "mneme/text/document.h"

#include "mneme/core/error.h"
#include "mneme/text/unicode.h"
#include "mneme/text/white_space.h"
#include "mneme/weights/digests.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <fmt/format.h>
#include <iterator>
#include <optional>
#include <sys/stat.h>
#include <system_error>
#include <unistd.h>
#include <unordered_set>
#include <utility>

namespace mneme {
namespace {

constexpr std::size_t kChunk = 1U << 20U;
constexpr std::size_t kSniffed = 1U << 16U;
constexpr std::size_t kMaxLabelBytes = 4096;
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

constexpr std::string_view kCodeExtensions[] = {
    ".ada",  ".asm",  ".awk", ".bash", ".bat",  ".c",      ".cc",     ".cfg",  ".clj", ".cmake",
    ".cpp",  ".cs",   ".css", ".cu",   ".cuh",  ".cxx",    ".d",      ".dart", ".el",  ".erl",
    ".ex",   ".exs",  ".f90", ".fs",   ".go",   ".gradle", ".groovy", ".h",    ".hh",  ".hpp",
    ".hs",   ".hxx",  ".inl", ".ini",  ".java", ".jl",     ".js",     ".json", ".jsx", ".kt",
    ".lisp", ".lua",  ".m",   ".mk",   ".ml",   ".nim",    ".php",    ".pl",   ".pm",  ".proto",
    ".ps1",  ".py",   ".pyi", ".r",    ".rb",   ".rs",     ".scala",  ".sh",   ".sql", ".swift",
    ".tcl",  ".toml", ".ts",  ".tsx",  ".yaml", ".yml"};

// Names are compared in lower case, so that README.PY is code too.
std::string lower_ascii(std::string text) {
  for (char& c : text) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return text;
}

std::string_view last_part(std::string_view label) {
  const auto slash = label.find_last_of('/');
  return slash == std::string_view::npos || slash + 1 == label.size() ? label
                                                                      : label.substr(slash + 1);
}

Media media_of(std::string_view label) {
  const std::string name = lower_ascii(std::string(last_part(label)));
  if (name == "makefile" || name == "dockerfile" || name == "cmakelists.txt") return Media::code;
  const auto dot = name.find_last_of('.');
  if (dot == std::string::npos) return Media::text;
  const bool code = std::find(std::begin(kCodeExtensions), std::end(kCodeExtensions),
                              name.substr(dot)) != std::end(kCodeExtensions);
  return code ? Media::code : Media::text;
}

// The first "# heading" among the first lines of a text; deeper in the file it is no title.
std::string title_of(std::string_view label, std::string_view text, Media media) {
  if (media == Media::text) {
    std::size_t at = text.starts_with(kByteOrderMark) ? kByteOrderMark.size() : 0;
    for (int line = 0; line < 20 && at < text.size(); ++line) {
      const auto end = std::min(text.find('\n', at), text.size());
      std::string_view s = text.substr(at, end - at);
      at = end + 1;
      if (!s.starts_with("# ")) continue;
      const std::string title = excerpt(s, 2, static_cast<std::int64_t>(s.size()), 200);
      if (!title.empty()) return title;
    }
  }
  return std::string(last_part(label));
}

std::int64_t line_of_byte(std::string_view text, std::size_t byte) {
  return 1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(byte), '\n');
}

// Why a text cannot be read as a document, if it cannot. `whole` is false for the first part of a
// file, which may end inside a character.
std::optional<std::string> complaint(std::string_view text, bool whole) {
  if (text.starts_with("\xFF\xFE") || text.starts_with("\xFE\xFF")) {
    return "is UTF-16; convert it, for example with `iconv -f utf-16 -t utf-8`";
  }
  if (text.starts_with("%PDF-")) return "is a PDF; convert it, for example with `pdftotext`";
  if (const auto nul = text.find('\0'); nul != std::string_view::npos) {
    return fmt::format("is binary (a zero byte at byte {}); mneme reads text in UTF-8", nul);
  }
  const auto bad = find_invalid_utf8(text);
  if (bad < 0) {
    for (std::size_t begin = 0; whole && begin < text.size();) {
      const auto end = std::min(text.find('\n', begin), text.size());
      if (end - begin > static_cast<std::size_t>(kMaxLineBytes)) {
        return fmt::format(
            "holds a line of {} bytes (line {}), which no text has; break lines longer than {} MiB",
            end - begin, line_of_byte(text, begin), kMaxLineBytes >> 20);
      }
      begin = end + 1;
    }
    return std::nullopt;
  }
  const auto at = static_cast<std::size_t>(bad);
  if (!whole && text.size() - at < 4) return std::nullopt;
  return fmt::format(
      "is not valid UTF-8: byte 0x{:02X} at byte {} (line {}); convert it, for example with `iconv "
      "-f latin1 -t utf-8`",
      static_cast<unsigned char>(text[at]), bad, line_of_byte(text, at));
}

bool blank(std::string_view text) {
  std::size_t at = text.starts_with(kByteOrderMark) ? kByteOrderMark.size() : 0;
  while (at < text.size()) {
    const auto n = text::space_at(text, at);
    if (n == 0) return false;
    at += n;
  }
  return true;
}

std::string too_large(std::string_view label) {
  return fmt::format("{}: holds more than {} GiB, the most that one document may; split it", label,
                     kMaxDocumentBytes >> 30);
}

class Descriptor {
 public:
  explicit Descriptor(const std::filesystem::path& path)
      : fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  [[nodiscard]] int get() const noexcept { return fd_; }

 private:
  int fd_;
};

std::string system_says(int error) { return std::generic_category().message(error); }

// Up to `limit` bytes; an errno on failure. A zero byte ends the reading: the rest cannot make it
// text, and devices like /dev/zero have no end.
std::pair<std::string, int> read_bytes(int fd, std::size_t limit) {
  std::string out;
  struct stat info{};
  if (::fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && info.st_size > 0) {
    out.reserve(std::min(static_cast<std::size_t>(info.st_size) + 1, limit));
  }
  while (out.size() < limit) {
    const auto had = out.size(), want = std::min(kChunk, limit - had);
    out.resize(had + want);
    ssize_t got = ::read(fd, out.data() + had, want);
    while (got < 0 && errno == EINTR) got = ::read(fd, out.data() + had, want);
    const int error = errno;
    out.resize(had + static_cast<std::size_t>(std::max<ssize_t>(got, 0)));
    if (got < 0) return {std::string(), error};
    if (got == 0) break;
    if (std::memchr(out.data() + had, 0, static_cast<std::size_t>(got)) != nullptr) break;
  }
  return {std::move(out), 0};
}

// Whether a file under a folder is a document, judged by its first bytes; the reason if not.
std::optional<std::string> reason_to_skip(const std::filesystem::directory_entry& entry) {
  std::error_code error;
  const auto status = entry.status(error);
  if (error || status.type() == std::filesystem::file_type::not_found) {
    return entry.is_symlink(error) ? "a link that leads nowhere" : "cannot be looked at";
  }
  if (!std::filesystem::is_regular_file(status)) return "not a regular file";
  const auto size = entry.file_size(error);
  if (error) return "cannot be looked at: " + error.message();
  if (size == 0) return "empty";
  if (size > static_cast<std::uintmax_t>(kMaxDocumentBytes)) {
    return fmt::format("larger than {} GiB", kMaxDocumentBytes >> 30);
  }
  const Descriptor file(entry.path());
  if (file.get() < 0) return "cannot be opened: " + system_says(errno);
  const auto [head, failed] = read_bytes(file.get(), kSniffed);
  if (failed != 0) return "cannot be read: " + system_says(failed);
  if (head.find('\0') != std::string::npos) return "binary";
  if (head.size() >= size && blank(head)) return "nothing but white space";
  return complaint(head, head.size() >= size);
}

void list_folder(const std::filesystem::path& folder, DocumentListing& out) {
  std::error_code error;
  std::filesystem::directory_iterator entries(folder, error);
  if (error) {
    out.skipped.push_back({folder, "cannot be listed: " + error.message()});
    return;
  }
  for (const std::filesystem::directory_iterator end; entries != end; entries.increment(error)) {
    const auto& entry = *entries;
    std::error_code ignored;
    if (entry.path().filename().native().starts_with('.')) {
      out.skipped.push_back({entry.path(), "hidden"});
    } else if (const auto name = entry.path().filename().string();
               has_control_characters(name) || find_invalid_utf8(name) >= 0) {
      out.skipped.push_back({entry.path(), "a name that cannot be cited"});
    } else if (entry.is_directory(ignored)) {
      // Links to folders are not followed: they can lead in circles or out of what the person
      // named.
      if (entry.is_symlink(ignored)) {
        out.skipped.push_back({entry.path(), "a link to a folder"});
      } else {
        list_folder(entry.path(), out);
      }
    } else if (auto reason = reason_to_skip(entry)) {
      out.skipped.push_back({entry.path(), std::move(*reason)});
    } else {
      out.files.push_back(entry.path());
    }
  }
  if (error) out.skipped.push_back({folder, "could be listed only in part: " + error.message()});
}

// A label as it may stand in a message: cut, and free of control characters.
std::string printable(std::string_view label) {
  std::string out(label.substr(0, 200));
  for (char& c : out) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = '?';
  }
  return out;
}

void check_label(std::string_view label) {
  const auto refuse = [&](std::string_view why) {
    throw Error(Errc::usage, fmt::format("'{}': {}", printable(label), why));
  };
  if (label.empty()) refuse("a document needs a label that is not empty");
  if (label.size() > kMaxLabelBytes) refuse("a label may hold at most 4096 bytes");
  if (find_invalid_utf8(label) >= 0) refuse("a label must be valid UTF-8; rename the file");
  if (has_control_characters(label))
    refuse("a label must have no control characters; rename the file");
}

}  // namespace

std::string_view media_name(Media media) noexcept {
  switch (media) {
    case Media::text:
      return "text";
    case Media::code:
      return "code";
    case Media::image:
      return "image";
    case Media::clip:
      return "clip";
  }
  return "text";
}

std::int64_t find_invalid_utf8(std::string_view text) noexcept {
  const auto valid = text::valid_utf8_prefix(text);
  return valid == text.size() ? -1 : static_cast<std::int64_t>(valid);
}

bool has_control_characters(std::string_view name) noexcept {
  return std::any_of(name.begin(), name.end(),
                     [](unsigned char c) { return c < 0x20 || c == 0x7F; });
}

Document document_from_text(std::string label, std::string text) {
  check_label(label);
  if (static_cast<std::int64_t>(text.size()) > kMaxDocumentBytes)
    throw Error(Errc::full, too_large(label));
  if (text.empty()) throw Error(Errc::invalid, label + ": is empty: there is nothing to read");
  if (const auto why = complaint(text, true)) throw Error(Errc::invalid, label + ": " + *why);
  if (blank(text)) throw Error(Errc::invalid, label + ": holds nothing but white space");
  Document out;
  out.media = media_of(label);
  out.title = title_of(label, text, out.media);
  out.content_hash = sha256_hex(std::string_view(text));
  out.label = std::move(label);
  out.text = std::move(text);
  return out;
}

Document read_document(const std::filesystem::path& path, std::string label) {
  check_label(label);
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    throw Error(Errc::invalid, label + ": is a folder where a file is meant");
  }
  const Descriptor file(path);
  if (file.get() < 0) {
    const int why = errno;
    if (why == ENOENT || why == ENOTDIR)
      throw Error(Errc::not_found, label + ": there is no such file");
    throw Error(Errc::io, label + ": cannot be opened: " + system_says(why));
  }
  auto [text, failed] = read_bytes(file.get(), static_cast<std::size_t>(kMaxDocumentBytes) + 1);
  if (failed != 0) throw Error(Errc::io, label + ": cannot be read: " + system_says(failed));
  return document_from_text(std::move(label), std::move(text));
}

Document read_document(const std::filesystem::path& path) {
  return read_document(path, path.generic_string());
}

DocumentListing list_documents(const std::filesystem::path& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (status.type() == std::filesystem::file_type::not_found) {
    throw Error(Errc::not_found, printable(path.native()) + ": there is no such file or folder");
  }
  if (!std::filesystem::is_directory(status)) return {{path}, {}};
  const std::filesystem::directory_iterator probe(path, error);
  if (error)
    throw Error(Errc::io, printable(path.native()) + ": cannot be listed: " + error.message());
  DocumentListing out;
  list_folder(path, out);
  std::sort(out.files.begin(), out.files.end(),
            [](const auto& a, const auto& b) { return a.native() < b.native(); });
  std::sort(out.skipped.begin(), out.skipped.end(),
            [](const auto& a, const auto& b) { return a.path.native() < b.path.native(); });
  return out;
}

void check_labels(std::span<const std::string> labels) {
  std::unordered_set<std::string_view> seen;
  for (const auto& label : labels) {
    check_label(label);
    if (!seen.insert(label).second) {
      throw Error(
          Errc::usage,
          label +
              ": two documents have this label; name each once, or read them into two memories");
    }
  }
}

namespace {
constexpr std::size_t kBlock = 4096;
}

LineIndex::LineIndex(std::string_view text) : text_(text) {
  before_.reserve(text.size() / kBlock + 1);
  for (std::size_t at = 0; at < text.size(); at += kBlock) {
    before_.push_back(feeds_);
    const auto block = text.substr(at, kBlock);
    feeds_ += std::count(block.begin(), block.end(), '\n');
  }
}

std::int64_t LineIndex::line_of(std::int64_t byte) const noexcept {
  if (byte <= 0 || text_.empty()) return 1;
  if (byte >= static_cast<std::int64_t>(text_.size())) return lines();
  const auto at = static_cast<std::size_t>(byte), block = at / kBlock;
  const auto head = text_.substr(block * kBlock, at - block * kBlock);
  return 1 + before_[block] + std::count(head.begin(), head.end(), '\n');
}

std::int64_t LineIndex::lines() const noexcept {
  return std::max<std::int64_t>(1, feeds_ + (text_.empty() || text_.back() == '\n' ? 0 : 1));
}

std::string excerpt(std::string_view text, std::int64_t start, std::int64_t end,
                    std::int64_t max_chars) {
  const auto size = static_cast<std::int64_t>(text.size());
  auto begin = static_cast<std::size_t>(std::clamp<std::int64_t>(start, 0, size));
  auto stop = static_cast<std::size_t>(
      std::clamp<std::int64_t>(end, static_cast<std::int64_t>(begin), size));
  while (begin < stop && !text::begins_character(text[begin])) ++begin;
  while (stop > begin && stop < text.size() && !text::begins_character(text[stop])) --stop;
  while (begin < stop) {
    const auto n = text::space_at(text.substr(0, stop), begin);
    if (n == 0) break;
    begin += n;
  }
  // The first byte behind max_chars characters, and the last border between words before it.
  std::size_t cut = begin, word = begin;
  std::int64_t chars = 0;
  bool in_word = false;
  while (cut < stop && chars < std::max<std::int64_t>(max_chars, 0)) {
    const bool space = text::space_at(text, cut) > 0;
    if (space && in_word) word = cut;
    in_word = !space;
    ++cut;
    while (cut < stop && !text::begins_character(text[cut])) ++cut;
    ++chars;
  }
  if (cut < stop) {
    const bool between = text::space_at(text, cut) > 0;
    if (!between && word > begin) cut = word;
  }
  while (cut > begin) {
    const auto n = text::space_before(text.substr(begin, cut - begin), cut - begin);
    if (n == 0) break;
    cut -= n;
  }
  return std::string(text.substr(begin, cut - begin));
}

}  // namespace mneme
