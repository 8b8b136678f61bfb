#include "bench/kv/texts.h"

#include "mneme/core/error.h"
#include "mneme/core/generator.h"
#include "mneme/tasks/squad.h"

#include "bench/speed/sample_text.h"
#include <algorithm>
#include <fmt/format.h>

namespace mneme::bench {
namespace {

// English has about 4 bytes a token; what is cut is more than that, so that one cut is nearly always enough.
constexpr std::int64_t kBytesPerToken = 6;

/// By author, so that nobody's books are in two splits.
std::string_view split_of_book(std::string_view name) {
  if (name.starts_with("Trollope_")) return "test";
  if (name.starts_with("Thackeray_")) return "dev";
  return "train";
}

std::vector<std::filesystem::path> books_of(const std::filesystem::path& data,
                                            std::string_view split) {
  std::vector<std::filesystem::path> out;
  std::error_code missing;
  for (const auto& entry : std::filesystem::directory_iterator(data / "books", missing)) {
    const auto name = entry.path().filename().string();
    if (name.ends_with(".txt.gz") && split_of_book(name) == split) out.push_back(entry.path());
  }
  std::sort(out.begin(), out.end());
  return out;
}

/// The first `tokens` ids of what begins with a line at or behind `begin`, or fewer where the text ends before.
std::vector<std::int32_t> ids_from(const std::string& text, std::size_t begin,
                                   const Tokenizer& tokenizer, std::int64_t tokens) {
  if (begin > 0) begin = std::min(text.find('\n', begin), text.size() - 1) + 1;
  const auto wanted = static_cast<std::size_t>(tokens);
  std::vector<std::int32_t> out;
  for (auto bytes = static_cast<std::size_t>(tokens * kBytesPerToken + 64);; bytes *= 2) {
    out = tokenizer.encode(std::string_view(text).substr(begin, bytes));
    if (out.size() > wanted || begin + bytes >= text.size()) break;
  }
  out.resize(std::min(out.size(), wanted));
  return out;
}

}  // namespace

std::vector<TextSample> sample_texts(const std::filesystem::path& data, std::string_view split,
                                     const Tokenizer& tokenizer, std::int64_t tokens,
                                     std::int64_t samples, std::uint64_t seed) {
  const auto books = books_of(data, split);
  const auto wanted = static_cast<std::size_t>(tokens);
  std::vector<TextSample> out(static_cast<std::size_t>(samples));
  if (books.empty()) {
    for (std::size_t i = 0; i < out.size(); ++i) {
      out[i].source = "made up";
      for (auto bytes = tokens * kBytesPerToken + 64; out[i].ids.size() < wanted; bytes *= 2)
        out[i].ids = ids_from(sample_text(bytes, seed * 1000 + i + 1), 0, tokenizer, tokens);
    }
    return out;
  }
  for (std::size_t b = 0; b < books.size() && b < out.size(); ++b) {
    auto text = tasks::read_gzip(books[b]);
    std::erase(text, '\r');
    const auto stretches = (out.size() - b + books.size() - 1) / books.size();
    const auto stretch = text.size() / stretches;
    for (std::size_t s = 0; s < stretches; ++s) {
      auto& sample = out[b + s * books.size()];
      sample.source = books[b].stem().stem().string();
      // A short stretch leaves little to choose, or nothing: then pieces of neighbouring ones overlap.
      const auto needs = std::min(static_cast<std::size_t>(tokens * kBytesPerToken), stretch);
      auto chance = Generator(seed).split(b).split(s);
      const auto begin = s * stretch + static_cast<std::size_t>(
                                           chance.uniform() * static_cast<double>(stretch - needs));
      sample.ids = ids_from(text, begin, tokenizer, tokens);
      if (sample.ids.size() < wanted) sample.ids = ids_from(text, 0, tokenizer, tokens);
      if (sample.ids.size() < wanted) {
        throw Error(Errc::usage, fmt::format("--tokens: {} has {} tokens in all, {} are wanted",
                                             sample.source, sample.ids.size(), tokens));
      }
    }
  }
  return out;
}

}  // namespace mneme::bench
