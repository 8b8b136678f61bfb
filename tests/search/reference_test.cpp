// Against tests/parity/search_reference.py, which does the same with numpy and Python's sqlite3 on
// SQuAD's paragraphs. Runs where MNEME_REFERENCE_PYTHON names a Python with numpy and the data is
// there (MNEME_DATA, or ../shared/data from the source tree), or on a folder that the script has
// made already, named by MNEME_SEARCH_CASE.
#include "mneme/search/hybrid_search.h"

#include "memory_table.h"
#include <array>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

namespace mneme {
namespace {

namespace fs = std::filesystem;

std::vector<float> numbers(const fs::path& path) {
  std::vector<float> out(fs::file_size(path) / sizeof(float));
  std::ifstream(path, std::ios::binary)
      .read(reinterpret_cast<char*>(out.data()),
            static_cast<std::streamsize>(out.size() * sizeof(float)));
  return out;
}

std::string variable(const char* name, const std::string& otherwise) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : otherwise;
}

TEST(SearchReference, OrdersAndScoresAgree) {
  fs::path folder = variable("MNEME_SEARCH_CASE", "");
  bool made = false;
  if (folder.empty()) {
    const auto python = variable("MNEME_REFERENCE_PYTHON", "");
    const fs::path squad =
        fs::path(variable("MNEME_DATA", "../shared/data")) / "squad/dev-v1.1.json.gz";
    if (python.empty() || !fs::exists(squad))
      GTEST_SKIP() << "no MNEME_REFERENCE_PYTHON, or no SQuAD";
    folder = fs::temp_directory_path() / ("mneme_search_case_" + std::to_string(::getpid()));
    made = true;
    const auto command = python + " tests/parity/search_reference.py '" + folder.string() +
                         "' --squad '" + squad.string() + "'";
    ASSERT_EQ(std::system(command.c_str()), 0) << command;
  }
  const auto c = nlohmann::json::parse(std::ifstream(folder / "case.json"));
  const auto spans = c["spans"].get<std::vector<std::string>>();
  const auto d = c["dimension"].get<std::size_t>();
  MemoryTable table;
  std::vector<std::int64_t> ids;
  table.run("BEGIN");
  for (std::size_t i = 0; i < spans.size(); ++i) {
    ids.push_back(static_cast<std::int64_t>(i));
    table.add(ids.back(), spans[i]);
  }
  table.run("COMMIT");
  const auto vectors = numbers(folder / "spans.f32"), queries = numbers(folder / "questions.f32");
  if (made) fs::remove_all(folder);
  DenseIndex dense(static_cast<std::int64_t>(d));
  dense.add(ids, vectors);
  const LexicalIndex lexical(table.db(), "words");
  const HybridSearch search(dense, lexical);
  const auto n = c["questions"].size();
  // Scores are compared place by place: sums in another order swap spans whose scores are equal.
  int other = 0;
  std::vector<std::size_t> hits(4, 0);
  for (std::size_t q = 0; q < n; ++q) {
    const auto found = search.search(std::span(queries).subspan(q * d, d),
                                     c["questions"][q].get<std::string>(), 20);
    const auto want = c["scores"][q].get<std::vector<double>>();
    bool same = found.size() == want.size();
    for (std::size_t i = 0; same && i < want.size(); ++i)
      same = std::abs(found[i].score - want[i]) < 1e-5;
    same = same && std::abs(search::relevance(found) - c["relevances"][q].get<double>()) < 1e-5;
    other += same ? 0 : 1;
    const auto gold = c["gold"][q].get<std::int64_t>();
    for (std::size_t i = 0; i < found.size(); ++i) {
      if (found[i].id != gold) continue;
      for (std::size_t at = 0; at < 4; ++at) hits[at] += i < std::array{1U, 3U, 5U, 10U}[at];
      break;
    }
  }
  // A cosine at the edge of the first hundred may fall on either side of it.
  EXPECT_LE(other, static_cast<int>(n / 100)) << "of " << n;
  for (std::size_t at = 0; at < 4; ++at) {
    RecordProperty("recall_at_" + std::to_string(std::array{1, 3, 5, 10}[at]),
                   std::to_string(static_cast<double>(hits[at]) / static_cast<double>(n)));
  }
}

}  // namespace
}  // namespace mneme
