// Documents: what a person gives mneme to read, kept byte for byte, and ways to point into it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mneme {

/// What a document is made of; it decides how it is cut into spans.
enum class Media { text, code, image, clip };

/// "text", "code", "image" or "clip".
std::string_view media_name(Media media) noexcept;

/// One source as it was read.
struct Document {
  std::int64_t id = 0;  ///< set by the memory that stores it
  std::string label;    ///< the name it is cited by, unique within a memory; never opened as a path
  std::string title;    ///< its first Markdown heading, or the last part of the label
  Media media =
      Media::text;  ///< text (plain or Markdown) or code; image and clip come from other readers
  std::string
      text;  ///< valid UTF-8 as read, byte for byte: line ends and a byte order mark included
  std::string content_hash;       ///< SHA-256 of `text`, 64 hex digits
  std::int64_t version = 1;       ///< grows by one when a memory replaces the text of this label
  std::int64_t created_at_s = 0;  ///< seconds since 1970 when the label was first stored, 0 before
  std::int64_t updated_at_s = 0;  ///< seconds since 1970 when this version was stored, 0 before
};

/// The most bytes that one document may hold.
inline constexpr std::int64_t kMaxDocumentBytes = std::int64_t{1} << 30;

/// The longest line of a document: what is longer is data, and would take hours to be read as text.
inline constexpr std::int64_t kMaxLineBytes = std::int64_t{64} << 20;

/// The first invalid byte of a text that claims to be UTF-8, or -1: overlong forms, surrogates and
/// code points above U+10FFFF are invalid.
std::int64_t find_invalid_utf8(std::string_view text) noexcept;

/// Whether a name holds bytes that a terminal or a citation cannot carry: control characters of ASCII.
bool has_control_characters(std::string_view name) noexcept;

/// Reads a file, or a pipe to its end, as a document named `label`. The media follows from the
/// name's extension. Throws Error with one line that begins with the label: `not_found` (no such
/// file), `io` (the system refused), `full` (over kMaxDocumentBytes), `invalid` (a folder, empty,
/// binary, or not UTF-8: with the byte and line), `usage` (a label that check_labels refuses).
Document read_document(const std::filesystem::path& path, std::string label);
/// The same with the path as given for its label.
Document read_document(const std::filesystem::path& path);

/// A document from text at hand (standard input, a library's caller). Throws as read_document.
Document document_from_text(std::string label, std::string text);

/// A file that list_documents left out, and why.
struct SkippedFile {
  std::filesystem::path path;
  std::string reason;  ///< "hidden", "binary", "empty", "a link to a folder", ...
};

/// What a folder holds for reading.
struct DocumentListing {
  std::vector<std::filesystem::path> files;  ///< sorted bytewise
  std::vector<SkippedFile> skipped;          ///< everything else that was met, sorted the same way
};

/// The documents under a folder, recursively; a file lists itself. Left out, each with its reason:
/// hidden files and folders, links to folders, what is no file, what cannot be opened, empty,
/// binary, too large, or not UTF-8 in its first 64 KiB (an invalid byte further on is found by
/// read_document). Throws `not_found` if there is no such path and `io` if the folder itself cannot
/// be read.
DocumentListing list_documents(const std::filesystem::path& path);

/// Throws `usage` if two documents would have the same label, or a label is empty, too long, or has
/// bytes that a terminal or a citation cannot carry (control characters, invalid UTF-8).
void check_labels(std::span<const std::string> labels);

/// Finds the line of a byte. Keeps one number per 4 KiB and looks at the text again, which must
/// outlive it.
class LineIndex {
 public:
  explicit LineIndex(std::string_view text);

  /// The line that holds a byte offset, from 1; a line feed belongs to the line that it ends. An
  /// offset at or behind the end gives the last line, a negative one the first.
  [[nodiscard]] std::int64_t line_of(std::int64_t byte) const noexcept;
  /// The number of lines: one more than there are line feeds, unless the text ends in one.
  [[nodiscard]] std::int64_t lines() const noexcept;

 private:
  std::string_view text_;
  std::vector<std::int64_t> before_;  // line feeds before each block
  std::int64_t feeds_ = 0;
};

/// The text of the byte range [start, end), at most `max_chars` code points, trimmed of white
/// space, always a verbatim part of `text` and valid UTF-8 if `text` is: the range is clamped to
/// the text and to character borders, and a cut falls between words where there are any.
std::string excerpt(std::string_view text, std::int64_t start, std::int64_t end,
                    std::int64_t max_chars);

}  // namespace mneme
