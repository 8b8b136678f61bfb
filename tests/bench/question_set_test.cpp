#include "bench/answers/question_set.h"

#include "bench/answers/answer_rows.h"
#include "bench/suite.h"
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <gtest/gtest.h>
#include <set>

namespace mneme::bench {
namespace {

/// Two articles; the second paragraph of the first is the gold one.
QuestionSet small_set() {
  QuestionSet set;
  set.articles.push_back({"A",
                          "First paragraph.\n\nThe bridge was built in 1904. It burnt in 1931.\n",
                          {{0, 16}, {18, 63}}});
  set.articles.push_back({"B", "The bridge was built in 1904.\n", {{0, 29}}});
  return set;
}

TEST(QuestionSet, GoldIsThePassageThatHoldsTheParagraphOrThePartWithTheAnswer) {
  const auto set = small_set();
  const ArticleQuestion question{"q", "When was it built?", {"in 1904"}, 0, 1};
  EXPECT_TRUE(is_gold(set, question, 0, 18, 63));   // the paragraph
  EXPECT_TRUE(is_gold(set, question, 0, 0, 63));    // joined with its neighbour
  EXPECT_TRUE(is_gold(set, question, 0, 18, 47));   // cut: the part with the answer
  EXPECT_FALSE(is_gold(set, question, 0, 48, 63));  // cut: the other part
  EXPECT_FALSE(is_gold(set, question, 0, 0, 16));   // another paragraph
  EXPECT_FALSE(
      is_gold(set, question, 1, 0, 29));  // another article, although the answer stands there
}

TEST(AnswerRows, GoOnFromAFileAndRefuseOneOfOtherSettings) {
  const auto file =
      (std::filesystem::temp_directory_path() / ("answer_rows_test_" + std::to_string(::getpid())))
          .string();
  const ArticleQuestion question{"q", "When?", {"1904"}, 0, 0};
  {
    AnswerRows rows(file, {{"split", "tuning"}});
    rows.add("gold", "q", scored("in 1904", question));
    rows.flush();
  }
  std::ofstream(file, std::ios::app)
      << "{\"variant\":\"gold\",\"id\":\"half";  // killed while writing
  {
    AnswerRows rows(file, {{"split", "tuning"}});
    EXPECT_TRUE(rows.has("gold", "q"));
    EXPECT_FALSE(rows.has("gold", "other"));
    EXPECT_NEAR(rows.row("gold", "q").at("f1").get<double>(), 2.0 / 3, 1e-12);
    rows.add("joint", "q", scored("1904", question));
    rows.flush();
  }
  AnswerRows rows(file, {{"split", "tuning"}});
  EXPECT_TRUE(rows.has("gold", "q"));
  EXPECT_TRUE(rows.has("joint", "q"));
  EXPECT_THROW(AnswerRows(file, {{"split", "final"}}), Error);
  std::filesystem::remove(file);
}

TEST(QuestionSet, ListsAreFixedNestedAndApart) {
  const auto* given = std::getenv("MNEME_DATA");
  const std::filesystem::path data = given ? std::filesystem::path(given) : default_data_folder();
  if (!std::filesystem::exists(data / "squad" / "dev-v1.1.json.gz"))
    GTEST_SKIP() << "no SQuAD in " << data;
  const auto all = choose_questions(data, "final", 500), few = choose_questions(data, "final", 50),
             tuning = choose_questions(data, "tuning", 500);
  ASSERT_EQ(all.questions.size(), 500U);
  EXPECT_EQ(all.asked.size(), 12U);
  EXPECT_EQ(tuning.asked.size(), 10U);
  for (std::size_t i = 0; i < few.questions.size(); ++i)
    EXPECT_EQ(few.questions[i].id, all.questions[i].id);
  std::set<std::string> ids;
  for (const auto& q : all.questions) {
    ids.insert(q.id);
    EXPECT_TRUE(std::binary_search(all.asked.begin(), all.asked.end(), q.article));
    const auto [begin, end] = all.articles[q.article].paragraphs.at(q.paragraph);
    EXPECT_TRUE(is_gold(all, q, q.article, begin, end));
    EXPECT_TRUE(holds_gold_answer(
        all.articles[q.article].text.substr(static_cast<std::size_t>(begin),
                                            static_cast<std::size_t>(end - begin)),
        q))
        << q.id;
  }
  EXPECT_EQ(ids.size(), 500U);
  // Nothing that is tuned on is reported on: neither questions nor strangers.
  for (const auto& q : tuning.questions) EXPECT_LT(q.article, 16U);
  for (const auto a : all.asked) EXPECT_GE(a, 16U);
  EXPECT_EQ(all.strangers.size(), 200U);
  EXPECT_EQ(all.without_strangers.size(), 28U);
  const std::set<std::string> strangers(all.strangers.begin(), all.strangers.end());
  for (const auto& q : tuning.strangers) EXPECT_FALSE(strangers.contains(q));
}

}  // namespace
}  // namespace mneme::bench
