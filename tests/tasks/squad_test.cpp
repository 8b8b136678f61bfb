#include "mneme/tasks/squad.h"

#include "mneme/core/error.h"

#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <zlib.h>

namespace mneme::tasks {
namespace {

using Strings = std::vector<std::string>;

TEST(Squad, NormalisesAsTheOfficialEvaluation) {
  EXPECT_EQ(normalised("The  Quick,  brown\tFox."), "quick brown fox");
  EXPECT_EQ(normalised("an apple a day"), "apple day");
  EXPECT_EQ(normalised("thesis and anthem"), "thesis and anthem");  // articles are whole words
  EXPECT_EQ(normalised("vitamin A"), "vitamin");
  EXPECT_EQ(normalised("the-end"), "theend");                 // punctuation goes before articles do
  EXPECT_EQ(normalised("1904\u20131908"), "1904\u20131908");  // only ASCII's punctuation goes
  EXPECT_EQ(normalised("A\u2013B"), "\u2013b");               // ... and parts words
  EXPECT_EQ(normalised("\u00c9MILE Z\u00d6LA"), "\u00e9mile z\u00f6la");
  EXPECT_EQ(normalised("$1,000\u00a0(net)"), "1000 net");
  EXPECT_EQ(normalised(""), "");
  EXPECT_EQ(normalised("The."), "");
}

TEST(Squad, WordF1ByHand) {
  // "old customs house" against "customs house at tarrow": 2 shared of 3 and 4 words.
  EXPECT_DOUBLE_EQ(word_f1("the old customs house", Strings{"customs house at Tarrow"}),
                   2.0 * 2 / 7);
  EXPECT_DOUBLE_EQ(word_f1("60", Strings{"sixty", "60"}), 1);
  EXPECT_DOUBLE_EQ(word_f1("60", Strings{"61"}), 0);
  EXPECT_DOUBLE_EQ(word_f1("no no no", Strings{"no"}),
                   0.5);  // a word counts as often as both have it
  EXPECT_DOUBLE_EQ(word_f1("", Strings{"x"}), 0);
  EXPECT_EQ(exact_match("The Bridge!", Strings{"tower", "bridge"}), 1);
  EXPECT_EQ(exact_match("bridges", Strings{"bridge"}), 0);
}

TEST(Squad, HoldsWholeWordsOnly) {
  EXPECT_TRUE(holds_words("It was paid for by Odile Kerr, the merchant.", "odile kerr"));
  EXPECT_FALSE(holds_words("It was paid for by Odile Kerry.", "Odile Kerr"));
  EXPECT_FALSE(holds_words("anything", "the"));  // nothing is left of it
}

class SquadFile : public testing::Test {
 protected:
  void SetUp() override { std::filesystem::create_directories(folder_); }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::filesystem::path write(const std::string& text) const {
    const auto path = folder_ / "squad.json.gz";
    gzFile file = gzopen(path.c_str(), "wb");
    gzwrite(file, text.data(), static_cast<unsigned>(text.size()));
    gzclose(file);
    return path;
  }
  std::filesystem::path folder_ =
      std::filesystem::temp_directory_path() / ("squad_test_" + std::to_string(::getpid()));
};

TEST_F(SquadFile, ReadsArticlesParagraphsAndQuestions) {
  const auto articles = load_squad(write(R"({"data": [{"title": "T", "paragraphs": [
    {"context": "One.", "qas": []},
    {"context": "Two.", "qas": [{"id": "q", "question": "What?", "is_impossible": true, "answers": [{"text": "two", "answer_start": 0}, {"text": "2"}]}]}]}]})"));
  ASSERT_EQ(articles.size(), 1U);
  EXPECT_EQ(articles[0].title, "T");
  EXPECT_EQ(articles[0].paragraphs, (Strings{"One.", "Two."}));
  ASSERT_EQ(articles[0].questions.size(), 1U);
  EXPECT_EQ(articles[0].questions[0].paragraph, 1U);
  EXPECT_EQ(articles[0].questions[0].answers, (Strings{"two", "2"}));
  EXPECT_TRUE(articles[0].questions[0].impossible);
}

TEST_F(SquadFile, RefusesWhatIsNoSquad) {
  EXPECT_THROW(load_squad(folder_ / "missing.json.gz"), Error);
  EXPECT_THROW(load_squad(write("{\"data\": 5}")), Error);
  EXPECT_THROW(load_squad(write("no json")), Error);
  const auto path = write(std::string(100000, 'x'));
  std::filesystem::resize_file(path, std::filesystem::file_size(path) / 2);
  EXPECT_THROW(load_squad(path), Error);
}

}  // namespace
}  // namespace mneme::tasks
