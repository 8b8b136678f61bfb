#include "mneme/tasks/squad.h"

#include "mneme/core/error.h"
#include "mneme/text/unicode.h"
#include "mneme/text/white_space.h"

#include <algorithm>
#include <array>
#include <fmt/format.h>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <unicode/locid.h>
#include <unicode/uchar.h>
#include <unicode/unistr.h>
#include <zlib.h>

namespace mneme::tasks {
namespace {

// A packed file must not fill the memory.
constexpr std::size_t kMaxUnpackedBytes = std::size_t{1} << 28;

bool is_word(char32_t c) {
  return (U_GET_GC_MASK(static_cast<UChar32>(c)) & (U_GC_L_MASK | U_GC_N_MASK)) != 0;
}

bool is_ascii_punctuation(char32_t c) {
  return (c >= 33 && c <= 47) || (c >= 58 && c <= 64) || (c >= 91 && c <= 96) ||
         (c >= 123 && c <= 126);
}

constexpr std::array<std::string_view, 4> kTuning = {"Amazon_rainforest", "Apollo_program",
                                                     "Black_Death", "Force"};
constexpr std::array<std::string_view, 12> kTest = {
    "Harvard_University", "Huguenot",       "Jacksonville,_Florida", "Oxygen",
    "Packet_switching",   "Private_school", "Scottish_Parliament",   "Steam_engine",
    "Super_Bowl_50",      "Teacher",        "University_of_Chicago", "Yuan_dynasty"};

/// Whether `part` stands in `text` byte for byte and not inside a word: "1679" does in "1641-1679".
bool stands_apart(std::string_view text, std::string_view part) {
  const auto in_word = [&](std::size_t at) {
    const auto c = static_cast<UChar32>(text::next_code_point(text, at).code_point);
    return u_isalnum(c) != 0;
  };
  for (auto at = text.find(part); !part.empty() && at != std::string_view::npos;
       at = text.find(part, at + 1)) {
    auto before = at;
    while (before > 0 && !text::begins_character(text[--before])) {
    }
    const auto after = at + part.size();
    if ((at == 0 || !in_word(before)) && (after == text.size() || !in_word(after))) return true;
  }
  return false;
}

std::vector<std::string> words_of(std::string_view normalised_text) {
  std::vector<std::string> out;
  std::istringstream in{std::string(normalised_text)};
  for (std::string word; in >> word;) out.push_back(word);
  return out;
}

}  // namespace

std::string read_gzip(const std::filesystem::path& path) {
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(gzopen(path.c_str(), "rb"), gzclose);
  if (!file) throw Error(Errc::not_found, fmt::format("no {}", path.string()));
  std::string out;
  for (std::string piece(1 << 20, '\0');;) {
    const int n = gzread(file.get(), piece.data(), static_cast<unsigned>(piece.size()));
    if (n < 0)
      throw Error(Errc::corrupt, fmt::format("{}: damaged: fetch it again", path.string()));
    if (n == 0) return out;
    out.append(piece, 0, static_cast<std::size_t>(n));
    if (out.size() > kMaxUnpackedBytes) {
      throw Error(Errc::corrupt, fmt::format("{}: unpacks to more than {} bytes", path.string(),
                                             kMaxUnpackedBytes));
    }
  }
}

std::vector<SquadArticle> load_squad(const std::filesystem::path& path) {
  const auto text = read_gzip(path);
  try {
    std::vector<SquadArticle> out;
    const auto json = nlohmann::json::parse(text);
    for (const auto& article : json.at("data")) {
      SquadArticle a{article.at("title").get<std::string>(), {}, {}};
      for (const auto& paragraph : article.at("paragraphs")) {
        for (const auto& question : paragraph.at("qas")) {
          SquadQuestion q{question.at("id").get<std::string>(),
                          question.at("question").get<std::string>(),
                          a.paragraphs.size(),
                          {},
                          question.value("is_impossible", false)};
          for (const auto& answer : question.at("answers"))
            q.answers.push_back(answer.at("text").get<std::string>());
          a.questions.push_back(std::move(q));
        }
        a.paragraphs.push_back(paragraph.at("context").get<std::string>());
      }
      out.push_back(std::move(a));
    }
    return out;
  } catch (const nlohmann::json::exception& e) {
    throw Error(Errc::corrupt,
                fmt::format("{}: not in SQuAD's layout: {}", path.string(), e.what()));
  }
}

std::span<const std::string_view> squad_test_titles() noexcept { return kTest; }

std::span<const std::string_view> squad_tuning_titles() noexcept { return kTuning; }

ArticleText article_text(const SquadArticle& article) {
  ArticleText out{article.title, {}, {}};
  for (const auto& paragraph : article.paragraphs) {
    if (!out.text.empty()) out.text += "\n\n";
    const auto text = trimmed(paragraph);
    const auto begin = static_cast<std::int64_t>(out.text.size());
    out.paragraphs.emplace_back(begin, begin + static_cast<std::int64_t>(text.size()));
    out.text += text;
  }
  out.text += "\n";
  return out;
}

std::string normalised(std::string_view answer) {
  icu::UnicodeString lower = icu::UnicodeString::fromUTF8(
      icu::StringPiece(answer.data(), static_cast<std::int32_t>(answer.size())));
  lower.toLower(icu::Locale::getRoot());
  std::u32string text;
  for (std::int32_t i = 0; i < lower.length(); i = lower.moveIndex32(i, 1)) {
    const auto c = static_cast<char32_t>(lower.char32At(i));
    if (!is_ascii_punctuation(c)) text.push_back(c);
  }
  // Articles are whole runs of letters and digits, whatever stands around them.
  std::string out;
  bool space = false;
  const auto put = [&](std::u32string_view piece) {
    if (space && !out.empty()) out.push_back(' ');
    space = false;
    for (const auto c : piece) text::append_utf8(c, out);
  };
  for (std::size_t i = 0; i < text.size();) {
    auto end = i;
    while (end < text.size() && is_word(text[end])) ++end;
    if (end > i) {
      const std::u32string_view word = std::u32string_view(text).substr(i, end - i);
      if (word == U"a" || word == U"an" || word == U"the") {
        space = true;
      } else {
        put(word);
      }
      i = end;
      continue;
    }
    const auto c = text[i];
    if (text::is_white_space(c) || (c >= 0x1C && c <= 0x1F)) {
      space = true;
    } else {
      put(std::u32string_view(text).substr(i, 1));
    }
    ++i;
  }
  return out;
}

double exact_match(std::string_view answer, std::span<const std::string> golds) {
  const auto mine = normalised(answer);
  return std::any_of(golds.begin(), golds.end(),
                     [&](const auto& gold) { return normalised(gold) == mine; })
             ? 1
             : 0;
}

double word_f1(std::string_view answer, std::span<const std::string> golds) {
  const auto mine = words_of(normalised(answer));
  double best = 0;
  for (const auto& gold : golds) {
    const auto theirs = words_of(normalised(gold));
    std::map<std::string, int> count;
    for (const auto& word : theirs) ++count[word];
    int same = 0;
    for (const auto& word : mine) same += count[word]-- > 0 ? 1 : 0;
    if (same > 0)
      best = std::max(best, 2.0 * same / static_cast<double>(mine.size() + theirs.size()));
  }
  return best;
}

bool holds_words(std::string_view text, std::string_view part) {
  const auto needle = normalised(part);
  return !needle.empty() &&
         (" " + normalised(text) + " ").find(" " + needle + " ") != std::string::npos;
}

bool holds_answer(std::string_view text, std::string_view answer) {
  return stands_apart(text, answer) || holds_words(text, answer);
}

std::string trimmed(std::string_view text) {
  while (const auto n = text::space_at(text, 0)) text.remove_prefix(n);
  while (const auto n = text::space_before(text, text.size())) text.remove_suffix(n);
  return std::string(text);
}

}  // namespace mneme::tasks
