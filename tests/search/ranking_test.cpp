#include "mneme/search/ranking.h"

#include "mneme/core/error.h"
#include "mneme/search/fusion.h"
#include "mneme/search/hybrid_search.h"

#include "memory_table.h"
#include <cmath>
#include <gtest/gtest.h>

namespace mneme {
namespace {

using Ids = std::vector<std::int64_t>;

TEST(Fusion, ByHand) {
  const std::vector<Ids> lists = {{4, 2, 9}, {2, 7}};
  const auto fused = search::reciprocal_rank_fusion(lists, 10, 100);
  ASSERT_EQ(fused.size(), 4U);
  EXPECT_EQ(fused[0].id, 2);
  EXPECT_DOUBLE_EQ(fused[0].rrf, 1.0 / 12 + 1.0 / 11);
  EXPECT_EQ(fused[1].id, 4);
  EXPECT_DOUBLE_EQ(fused[1].rrf, 1.0 / 11);
  EXPECT_EQ(fused[2].id, 7);
  EXPECT_DOUBLE_EQ(fused[2].rrf, 1.0 / 12);
  EXPECT_EQ(fused[3].id, 9);
  EXPECT_EQ(search::reciprocal_rank_fusion(lists, 10, 2).size(), 2U);
}

TEST(Fusion, TiesGoByIdAndRepeatsCountOnce) {
  const auto fused = search::reciprocal_rank_fusion(std::vector<Ids>{{8, 8, 3}, {5}}, 60, 100);
  ASSERT_EQ(fused.size(), 3U);
  EXPECT_EQ(fused[0].id, 5);
  EXPECT_EQ(fused[1].id, 8);
  EXPECT_DOUBLE_EQ(fused[1].rrf, 1.0 / 61);
  EXPECT_DOUBLE_EQ(fused[2].rrf, 1.0 / 63);
  EXPECT_TRUE(search::reciprocal_rank_fusion(std::vector<Ids>{}, 10, 5).empty());
  EXPECT_THROW(search::reciprocal_rank_fusion(std::vector<Ids>{{1}}, -1, 5), Error);
}

TEST(Cover, ByHand) {
  MemoryTable table({"The bridge was built of stone", "A stone bridge stands there",
                     "Salt merchants paid", "Old stones"});
  const LexicalIndex index(table.db(), "words");
  const auto terms = search::weigh_terms("Who built the stone bridges?", index);
  ASSERT_EQ(terms.size(), 3U);  // built, stone, bridg
  const auto idf = [](double df) { return std::log(1 + (4 - df + 0.5) / (df + 0.5)); };
  EXPECT_EQ(terms[0].term.stem, "built");
  EXPECT_DOUBLE_EQ(terms[0].idf, idf(1));
  EXPECT_DOUBLE_EQ(terms[1].idf, idf(3));
  EXPECT_DOUBLE_EQ(terms[2].idf, idf(2));
  const double total = idf(1) + idf(2) + idf(3);
  const auto cover = search::cover(terms, Ids{1, 2, 3, 4}, index);
  EXPECT_DOUBLE_EQ(cover[0], 1);
  EXPECT_DOUBLE_EQ(cover[1], (idf(3) + idf(2)) / total);
  EXPECT_DOUBLE_EQ(cover[2], 0);
  EXPECT_DOUBLE_EQ(cover[3], idf(3) / total);
}

TEST(Cover, UnknownTermsCountAndStopWordsServeAlone) {
  MemoryTable table({"who is who", "a zebra"});
  const LexicalIndex index(table.db(), "words");
  const auto unknown = search::weigh_terms("the quagga zebra", index);
  ASSERT_EQ(unknown.size(), 2U);
  EXPECT_DOUBLE_EQ(unknown[0].idf, std::log(1 + 2.5 / 0.5));
  EXPECT_LT(search::cover(unknown, Ids{2}, index)[0], 0.5);
  const auto stops = search::weigh_terms("Who is who?", index);
  EXPECT_EQ(stops.size(), 2U);
  EXPECT_DOUBLE_EQ(search::cover(stops, Ids{1, 2}, index)[0], 1);
  EXPECT_TRUE(search::weigh_terms("?!", index).empty());
  EXPECT_DOUBLE_EQ(search::cover({}, Ids{1}, index)[0], 0);
}

TEST(Reorder, SortsTheFirstAndKeepsTheRest) {
  std::vector<Candidate> c = {
      {1, 0, 0, 0, 0.1}, {2, 0, 0, 0, 0.5}, {3, 0, 0, 0, 0.5}, {4, 0, 0, 0, 0.9}};
  search::reorder(c, 3);
  EXPECT_EQ(c[0].id, 2);
  EXPECT_EQ(c[1].id, 3);
  EXPECT_EQ(c[2].id, 1);
  EXPECT_EQ(c[3].id, 4);
  search::reorder(c, 100);
  EXPECT_EQ(c[0].id, 4);
}

TEST(Relevance, IsTheLargestAmongTheFirst) {
  const std::vector<Candidate> c = {
      {1, 0, 0, 0, 0, 0.6}, {2, 0, 0, 0, 0, 1.0}, {3, 0, 0, 0, 0, 1.8}};
  EXPECT_DOUBLE_EQ(search::relevance(c, 2), 1.0);
  EXPECT_DOUBLE_EQ(search::relevance(c), 1.8);
  EXPECT_DOUBLE_EQ(search::relevance({}), 0);
}

class HybridTest : public ::testing::Test {
 protected:
  HybridTest()
      : table_({"alpha beta", "beta gamma", "gamma delta", "delta alpha", "omega"}),
        lexical_(table_.db(), "words"),
        dense_(2) {
    // Span 5 has no vector; the others stand at 0, 30, 60 and 90 degrees.
    std::vector<float> x;
    for (int i = 0; i < 4; ++i) {
      x.push_back(static_cast<float>(std::cos(i * M_PI / 6)));
      x.push_back(static_cast<float>(std::sin(i * M_PI / 6)));
    }
    dense_.add(Ids{1, 2, 3, 4}, x);
  }
  MemoryTable table_;
  LexicalIndex lexical_;
  DenseIndex dense_;
  const std::vector<float> east_ = {1, 0};
};

TEST_F(HybridTest, FillsInEveryScore) {
  RankingOptions options;
  options.cover_weight = 0.4;
  const auto found = HybridSearch(dense_, lexical_, options).search(east_, "what is the delta", 10);
  ASSERT_EQ(found.size(), 4U);
  // Cosines 1, .866, .5, 0; delta is in 3 and 4, so these gain 0.4.
  EXPECT_EQ(found[0].id, 1);
  EXPECT_EQ(found[1].id, 3);
  EXPECT_EQ(found[2].id, 2);
  EXPECT_EQ(found[3].id, 4);
  EXPECT_NEAR(found[1].cosine, 0.5, 1e-6);
  EXPECT_DOUBLE_EQ(found[1].cover, 1);
  EXPECT_NEAR(found[1].score, 0.9, 1e-6);
  // 2 of 5 spans hold delta: ln 2.4 against ln 12 of a word that none holds.
  EXPECT_NEAR(found[1].relevance, 0.5 + std::log(2.4) / (std::log(2.4) + std::log(12)), 1e-6);
  EXPECT_DOUBLE_EQ(found[1].rrf, 1.0 / 13 + 1.0 / 11);
  EXPECT_EQ(HybridSearch(dense_, lexical_).search(east_, "delta", 2).size(), 2U);
}

TEST_F(HybridTest, SpanWithoutVectorIsFoundByItsWords) {
  const auto found = HybridSearch(dense_, lexical_).search(east_, "omega", 10);
  const auto omega =
      std::find_if(found.begin(), found.end(), [](const auto& c) { return c.id == 5; });
  ASSERT_NE(omega, found.end());
  EXPECT_EQ(omega->cosine, 0);
  EXPECT_DOUBLE_EQ(omega->cover, 1);
  const auto by_words = HybridSearch(dense_, lexical_).search({}, "omega alpha", 10);
  ASSERT_EQ(by_words.size(), 3U);
  EXPECT_EQ(by_words[0].id, 5);
}

TEST_F(HybridTest, RestrictionHoldsForBothLists) {
  const Ids within = {4, 5};
  for (const auto& c :
       HybridSearch(dense_, lexical_).search(east_, "alpha omega beta", 10, &within))
    EXPECT_TRUE(c.id == 4 || c.id == 5);
  EXPECT_EQ(HybridSearch(dense_, lexical_).search(east_, "beta", 10, &within).size(), 1U);
}

TEST_F(HybridTest, OnlyTheFirstAreReordered) {
  RankingOptions options;
  options.depth = 1;
  const auto found = HybridSearch(dense_, lexical_, options).search(east_, "delta", 10);
  // The fusion alone: 3 (ranks 3 and 1), 4 (4 and 2), 1, 2.
  EXPECT_EQ(found[0].id, 3);
  EXPECT_EQ(found[1].id, 4);
  EXPECT_EQ(found[2].id, 1);
  EXPECT_EQ(found[3].id, 2);
}

TEST_F(HybridTest, WrongOptionsAreRefused) {
  EXPECT_THROW(HybridSearch(dense_, lexical_, {.retrieve = 0}), Error);
  EXPECT_THROW(HybridSearch(dense_, lexical_, {.rrf_k = -1}), Error);
  EXPECT_THROW(HybridSearch(dense_, lexical_, {.depth = 0}), Error);
  EXPECT_THROW(HybridSearch(dense_, lexical_, {.cover_weight = std::nan("")}), Error);
}

}  // namespace
}  // namespace mneme
