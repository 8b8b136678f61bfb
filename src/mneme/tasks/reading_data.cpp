#include "mneme/tasks/reading_data.h"

#include "mneme/core/error.h"
#include "mneme/core/log.h"
#include "mneme/core/nearest.h"
#include "mneme/tasks/squad.h"
#include "mneme/text/document.h"
#include "mneme/text/unicode.h"
#include "mneme/text/white_space.h"
#include "mneme/weights/digests.h"

#include <algorithm>
#include <fmt/format.h>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

namespace mneme::tasks {
namespace {

using nlohmann::json;
using std::filesystem::path;

constexpr const char* kSquad1 = "dev-v1.1.json.gz";
constexpr const char* kSquad2 = "dev-v2.0.json.gz";
constexpr const char* kQed = "qed-dev.jsonlines.gz";
// Lines of QED's file, counted from 1: training to the first, tuning to the second, then test.
constexpr std::int64_t kQedTrain = 800, kQedTuning = 1000;
// Of 256 first bytes of digests those below this are for tuning.
constexpr int kTuningBytes = 26;

void require(const path& file, std::string_view what) {
  if (std::filesystem::is_regular_file(file)) return;
  throw Error(
      Errc::not_found,
      fmt::format("no {}: point --data (or MNEME_DATA) at a folder with {}", file.string(), what));
}

/// By the title of an article, its words parted by underscores or by spaces.
Split split_of(std::string title) {
  std::replace(title.begin(), title.end(), ' ', '_');
  const auto among = [&](auto titles) {
    return std::find(titles.begin(), titles.end(), title) != titles.end();
  };
  if (among(squad_test_titles())) return Split::test;
  return among(squad_tuning_titles()) ? Split::tuning : Split::train;
}

/// Calls `each` with every line's number, from 1, and its object; empty lines are passed over. What
/// is wrong with a line becomes an Error with file and line.
void for_each_object(const path& file, Errc code,
                     const std::function<void(std::int64_t, const json&)>& each) {
  const auto text = read_gzip(file);
  std::int64_t number = 0;
  for (std::size_t begin = 0; begin < text.size();) {
    const auto end = std::min(text.find('\n', begin), text.size());
    const auto line = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (trimmed(line).empty()) continue;
    const auto fail = [&](const std::string& what) -> Error {
      return {code, fmt::format("{}:{}: {}", file.string(), number, what)};
    };
    if (!text::is_valid_utf8(line)) throw fail("not UTF-8");
    const auto object = json::parse(line, nullptr, false);
    if (object.is_discarded() || !object.is_object())
      throw fail("not a JSON object, of which every line holds one");
    try {
      each(number, object);
    } catch (const json::exception& e) {
      throw fail(e.what());
    } catch (const Error& e) {
      throw fail(e.what());
    }
  }
}

/// A string of an object; throws Error without place.
std::string string_in(const json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end()) throw Error(Errc::invalid, fmt::format("\"{}\" is missing", key));
  if (!found->is_string()) throw Error(Errc::invalid, fmt::format("\"{}\" is no string", key));
  auto out = trimmed(found->get<std::string>());
  if (out.empty()) throw Error(Errc::invalid, fmt::format("\"{}\" is empty", key));
  return out;
}

std::vector<std::string> answers_in(const json& object) {
  const auto found = object.find("answers");
  if (found == object.end()) {
    throw Error(Errc::invalid, "\"answers\" is missing: give [] where the text has no answer");
  }
  if (!found->is_array()) throw Error(Errc::invalid, "\"answers\" is no list");
  std::vector<std::string> out;
  for (const auto& answer : *found) {
    if (!answer.is_string()) throw Error(Errc::invalid, "\"answers\" has what is no string");
    out.push_back(trimmed(answer.get<std::string>()));
    if (normalised(out.back()).empty()) {
      throw Error(Errc::invalid, fmt::format("the answer \"{}\" has no words", out.back()));
    }
  }
  return out;
}

/// The texts of `all` that belong to a split, with the questions on them.
ReadingData part_of(ReadingData all, const std::function<bool(std::size_t)>& belongs) {
  ReadingData out;
  std::map<std::size_t, std::size_t> moved;
  for (std::size_t i = 0; i < all.texts.size(); ++i) {
    if (!belongs(i)) continue;
    moved[i] = out.texts.size();
    out.texts.push_back(std::move(all.texts[i]));
  }
  for (auto& question : all.questions) {
    const auto found = moved.find(question.of_text);
    if (found == moved.end()) continue;
    question.of_text = found->second;
    out.questions.push_back(std::move(question));
  }
  return out;
}

ReadingText whole_text(std::string source, std::string text) {
  const auto size = static_cast<std::int64_t>(text.size());
  return {std::move(source), std::move(text), {{0, size}}};
}

}  // namespace

ReadingData squad_reading(const path& folder, Split split) {
  require(folder / kSquad1, "SQuAD's development set v1.1");
  ReadingData out;
  std::map<std::string, std::size_t> by_title;
  std::vector<std::map<std::string, std::size_t>> by_paragraph;  // of each text
  for (const auto& article : load_squad(folder / kSquad1)) {
    if (split_of(article.title) != split) continue;
    const auto index = out.texts.size();
    if (!by_title.emplace(article.title, index).second) {
      throw Error(Errc::corrupt, fmt::format("{}: the article '{}' is there twice",
                                             (folder / kSquad1).string(), article.title));
    }
    auto text = article_text(article);
    out.texts.push_back({article.title, std::move(text.text), std::move(text.paragraphs)});
    by_paragraph.emplace_back();
    for (std::size_t p = 0; p < article.paragraphs.size(); ++p) {
      by_paragraph.back().emplace(trimmed(article.paragraphs[p]), p);
    }
    for (const auto& question : article.questions) {
      if (question.answers.empty()) continue;
      out.questions.push_back(
          {question.id, trimmed(question.text), index, question.paragraph, question.answers});
    }
  }
  if (!std::filesystem::exists(folder / kSquad2)) return out;
  for (const auto& article : load_squad(folder / kSquad2)) {
    const auto found = by_title.find(article.title);
    if (found == by_title.end()) continue;
    for (const auto& question : article.questions) {
      if (!question.impossible) continue;
      const auto& paragraphs = by_paragraph[found->second];
      const auto paragraph = paragraphs.find(trimmed(article.paragraphs.at(question.paragraph)));
      if (paragraph == paragraphs.end()) continue;
      out.questions.push_back(
          {question.id, trimmed(question.text), found->second, paragraph->second, {}});
    }
  }
  return out;
}

PlainText plain_text(std::string_view tokens) {
  static const std::set<std::string_view> kToTheLeft = {
      ".",   ",",  ";",  ":",   "!",   "?",  ")",   "]",   "}", "%",
      "...", "'s", "'S", "n't", "'ll", "'m", "'re", "'ve", "'d"};
  static const std::set<std::string_view> kToTheRight = {"(", "[", "{", "$", "£", "€", "₹", "#"};
  static const std::set<std::string_view> kJoining = {"-", "/", "--"};
  PlainText out;
  bool join = true;  // no space before the next token
  for (std::size_t at = 0; at < tokens.size();) {
    if (const auto n = text::space_at(tokens, at)) {
      out.bytes.push_back(out.text.size());
      at += n;
      continue;
    }
    auto end = at;
    while (end < tokens.size() && text::space_at(tokens, end) == 0) {
      end += text::next_code_point(tokens, end).bytes;
    }
    const auto token = tokens.substr(at, end - at);
    const bool joining = kJoining.contains(token);
    const bool closes = token == "''";
    if (!join && !joining && !closes && !kToTheLeft.contains(token)) out.text += ' ';
    const auto begin = out.text.size();
    const auto plain = token == "``" || closes ? std::string_view("\"")
                       : token == "--"         ? std::string_view("–")
                                               : token;
    out.text += plain;
    for (auto i = at; i < end; i += text::next_code_point(tokens, i).bytes) {
      out.bytes.push_back(begin + std::min(i - at, plain.size()));
    }
    join = joining || token == "``" || kToTheRight.contains(token);
    at = end;
  }
  out.bytes.push_back(out.text.size());
  return out;
}

ReadingData nq_qed_reading(const path& folder, Split split) {
  require(folder / kQed, "QED's development set");
  ReadingData all;
  std::map<std::string, std::size_t> by_text;
  std::vector<std::set<Split>> asked_in;  // of each text
  std::vector<Split> split_of_question;
  for_each_object(folder / kQed, Errc::corrupt, [&](std::int64_t number, const json& row) {
    const auto tokens = row.at("paragraph_text").get<std::string>();
    const auto plain = plain_text(tokens);
    std::vector<std::string> answers;
    // The paragraph's own words in plain form, which the tokens of the answer would not give: what
    // joins to the left there may begin the answer here.
    const auto add = [&](const json& piece) {
      const auto begin = piece.at("start").get<std::size_t>(),
                 end = piece.at("end").get<std::size_t>();
      if (begin >= end || end >= plain.bytes.size()) {
        throw Error(Errc::corrupt,
                    fmt::format("an answer at {} to {} of a paragraph of {} characters", begin, end,
                                plain.bytes.size() - 1));
      }
      auto answer = trimmed(std::string_view(plain.text)
                                .substr(plain.bytes[begin], plain.bytes[end] - plain.bytes[begin]));
      if (!normalised(answer).empty()) answers.push_back(std::move(answer));
    };
    // Answers of several pieces are lists, which no short quotation gives.
    for (const auto& pieces : row.at("original_nq_answers")) {
      if (pieces.size() == 1) add(pieces.front());
    }
    if (const auto answer = row.at("annotation").find("answer");
        answer != row.at("annotation").end() && answer->size() == 1) {
      add(answer->front().at("paragraph_reference"));
    }
    const auto here = split_of(row.at("title_text").get<std::string>()) == Split::test ? Split::test
                      : number <= kQedTrain  ? Split::train
                      : number <= kQedTuning ? Split::tuning
                                             : Split::test;
    const auto text = trimmed(plain.text);
    const auto [found, fresh] = by_text.emplace(text, all.texts.size());
    if (fresh) {
      all.texts.push_back(whole_text("nq-qed", text));
      asked_in.emplace_back();
    }
    asked_in[found->second].insert(here);
    if (answers.empty()) return;
    const auto id = row.at("example_id");
    all.questions.push_back({id.is_string() ? id.get<std::string>() : id.dump(),
                             trimmed(row.at("question_text").get<std::string>()), found->second, 0,
                             std::move(answers)});
    split_of_question.push_back(here);
  });
  ReadingData wanted;
  wanted.texts = std::move(all.texts);
  for (std::size_t i = 0; i < all.questions.size(); ++i) {
    if (split_of_question[i] == split) wanted.questions.push_back(std::move(all.questions[i]));
  }
  return part_of(std::move(wanted), [&](std::size_t text) {
    const auto& splits = asked_in[text];
    // The last split wins: test before tuning, tuning before training.
    return *splits.rbegin() == split;
  });
}

ReadingData own_reading(const path& file, Split split) {
  if (!std::filesystem::is_regular_file(file)) {
    throw Error(Errc::not_found, fmt::format("no file {} with questions", file.string()));
  }
  ReadingData all;
  std::map<std::pair<std::string, std::string>, std::size_t> by_text;
  std::int64_t strange = 0, first_strange = 0;
  for_each_object(file, Errc::invalid, [&](std::int64_t number, const json& row) {
    if (row.contains("text") && row.contains("passage")) {
      throw Error(Errc::invalid, "both \"text\" and \"passage\": give one");
    }
    auto text = string_in(row, row.contains("passage") ? "passage" : "text");
    auto source = row.contains("source") ? string_in(row, "source") : file.filename().string();
    auto question = string_in(row, "question");
    auto answers = answers_in(row);
    const bool quoted =
        answers.empty() ||
        std::any_of(answers.begin(), answers.end(), [&](auto& a) { return holds_answer(text, a); });
    if (!quoted) {
      if (strange++ == 0) first_strange = number;
      return;
    }
    const auto [found, fresh] = by_text.emplace(std::pair(source, text), all.texts.size());
    if (fresh) all.texts.push_back(whole_text(std::move(source), std::move(text)));
    all.questions.push_back({fmt::format("{}:{}", file.filename().string(), number),
                             std::move(question), found->second, 0, std::move(answers)});
  });
  if (strange > 0 && split == Split::train) {
    log::warn(
        "{}: {} of the questions are left out because no answer of theirs stands in the text, the "
        "first in line {}",
        file.string(), strange, first_strange);
  }
  if (all.questions.empty()) {
    throw Error(Errc::invalid, fmt::format("{}: no questions to learn from", file.string()));
  }
  std::vector<std::string> digests;
  for (const auto& text : all.texts) digests.push_back(sha256_hex(text.text));
  // A small file whose digests are all above the border gives its lowest, so that there is something
  // to validate on; the only passage stays for training.
  const auto lowest = *std::min_element(digests.begin(), digests.end());
  const auto highest = *std::max_element(digests.begin(), digests.end());
  return part_of(std::move(all), [&](std::size_t i) {
    const bool tuning =
        digests[i] != highest &&
        (std::stoi(digests[i].substr(0, 2), nullptr, 16) < kTuningBytes || digests[i] == lowest);
    return split == (tuning ? Split::tuning : Split::train);
  });
}

ReadingData reading_data(std::string_view names, const path& folder, Split split) {
  ReadingData out;
  const auto add = [&](ReadingData data) {
    for (auto& question : data.questions) question.of_text += out.texts.size();
    std::move(data.texts.begin(), data.texts.end(), std::back_inserter(out.texts));
    std::move(data.questions.begin(), data.questions.end(), std::back_inserter(out.questions));
  };
  const auto file_of = [&](std::string_view name) {
    const path given(name);
    return std::filesystem::exists(given) || given.is_absolute() ? given : folder / given;
  };
  const auto one = [&](std::string_view name) {
    if (name == "squad") {
      add(squad_reading(folder / "squad", split));
    } else if (name == "nq-qed") {
      add(nq_qed_reading(folder / "nq-qed", split));
    } else if (name.ends_with(".jsonl")) {
      add(own_reading(file_of(name), split));
    } else {
      throw Error(Errc::usage,
                  fmt::format("no data set '{}'{}: there are squad, nq-qed, and any file "
                              "that ends in .jsonl",
                              name, did_you_mean(name, {"squad", "nq-qed"})));
    }
  };
  // A file's name may hold a '+'.
  if (names.ends_with(".jsonl") && std::filesystem::exists(file_of(names))) {
    one(names);
    return out;
  }
  for (std::size_t begin = 0; begin <= names.size();) {
    const auto end = std::min(names.find('+', begin), names.size());
    one(trimmed(names.substr(begin, end - begin)));
    begin = end + 1;
  }
  return out;
}

}  // namespace mneme::tasks
