// Made-up documents, states and folders for the tests of the memory file.
#pragma once

#include "mneme/memory/memory_file.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <gtest/gtest.h>
#include <iterator>
#include <random>
#include <string>
#include <string_view>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

namespace mneme::check {

/// A folder of its own that goes with the test.
class Folder {
 public:
  Folder() {
    // In memory where that is: what is tested is what survives a process, and every fsync would
    // cost milliseconds.
    const std::filesystem::path shared = "/dev/shm";
    const auto parent =
        ::access(shared.c_str(), W_OK) == 0 ? shared : std::filesystem::temp_directory_path();
    std::string name = (parent / "mneme-memory-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path_ = name;
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::filesystem::path operator/(std::string_view name) const { return path_ / name; }
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  /// The names of the files in it.
  [[nodiscard]] std::vector<std::string> files() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(path_))
      names.push_back(entry.path().filename().string());
    std::sort(names.begin(), names.end());
    return names;
  }

 private:
  std::filesystem::path path_;
};

inline std::string file_bytes(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline void write_file(const std::filesystem::path& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary)
      .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

/// Whether the bytes stand in any file of the folder.
inline bool found_in(const Folder& folder, std::string_view bytes) {
  for (const auto& name : folder.files()) {
    if (file_bytes(folder / name).find(bytes) != std::string::npos) return true;
  }
  return false;
}

/// Paragraphs as spans under one section.
inline std::vector<Span> paragraphs(std::string_view text) {
  std::vector<Span> spans;
  Span section;
  section.end = static_cast<std::int64_t>(text.size());
  section.kind = "section";
  spans.push_back(section);
  for (std::size_t at = 0; at < text.size();) {
    const auto end = std::min(text.find("\n\n", at), text.size());
    Span s;
    s.begin = static_cast<std::int64_t>(at);
    s.end = static_cast<std::int64_t>(end);
    s.parent = 0;
    s.order = static_cast<std::int64_t>(spans.size());
    s.tokens = static_cast<std::int64_t>(end - at) / 4;
    s.kind = "passage";
    spans.push_back(s);
    at = end + 2;
  }
  return spans;
}

/// Stores a text under a label, cut at empty lines.
inline PutResult put_text(MemoryFile& file, const std::string& label, const std::string& text,
                          const MemoryFile::PutOptions& options = {}) {
  return file.put_document(document_from_text(label, text), paragraphs(text), {}, options);
}

inline std::string noise(std::size_t bytes, std::uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::string out(bytes, '\0');
  for (auto& c : out) c = static_cast<char>(generator());
  return out;
}

/// A state of that many random bytes.
inline Rep state_of(std::int64_t span, std::size_t bytes, std::uint64_t seed = 1) {
  Rep rep;
  rep.key = {span, RepKind::kv, "model", -1, "int8", "prefix"};
  rep.n_vec = 100;
  rep.d = 64;
  rep.blob = noise(bytes, seed);
  return rep;
}

inline Rep embedding_of(std::int64_t span, std::uint64_t seed = 1) {
  Rep rep;
  rep.key = {span, RepKind::embedding, "embedder", -1, "f32", ""};
  rep.n_vec = 1;
  rep.d = 384;
  rep.blob = noise(384 * 4, seed);
  return rep;
}

/// Sentences that occur once each: "The keeper number N of harbour H counts S ships."
inline std::string story(int first, int count) {
  std::string text;
  for (int i = first; i < first + count; ++i) {
    if (!text.empty()) text += "\n\n";
    text += "The keeper number " + std::to_string(i) + " of harbour " +
            std::to_string(i * 7919 % 1000) + " counts " + std::to_string(i * 31) +
            " ships before the lamps are lit along the quay.";
  }
  return text;
}

/// The code of the Error that a call throws; fails the test if it throws none or its message is not
/// one line.
template <class Call>
Errc error_of(Call&& call, std::string* message = nullptr) {
  try {
    call();
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_FALSE(text.empty());
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
    if (message != nullptr) *message = text;
    return error.code();
  }
  ADD_FAILURE() << "no error was thrown";
  return Errc::usage;
}

inline void expect_sound(const MemoryFile& file) {
  const auto report = file.verify();
  for (const auto& line : report.problems) ADD_FAILURE() << line;
}

/// Runs `body` in a child as an ordinary user, since root may write anywhere; false if it cannot be
/// or a check fails.
inline bool as_ordinary_user(const std::function<bool()>& body) {
  const pid_t child = ::fork();
  if (child == 0) {
    bool good = false;
    try {
      good = (::geteuid() != 0 || (::setgid(65534) == 0 && ::setuid(65534) == 0)) && body();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s\n", error.what());
    }
    ::_exit(good ? 0 : 1);
  }
  int status = 0;
  return ::waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace mneme::check
