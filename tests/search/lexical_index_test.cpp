#include "mneme/search/lexical_index.h"

#include "mneme/core/error.h"

#include "memory_table.h"
#include <cmath>
#include <gtest/gtest.h>
#include <map>
#include <random>

namespace mneme {
namespace {

std::vector<std::int64_t> ids_of(const std::vector<LexicalHit>& hits) {
  std::vector<std::int64_t> out;
  for (const auto& h : hits) out.push_back(h.id);
  return out;
}

TEST(QueryWords, AreDistinctAndOfAnyScript) {
  using V = std::vector<std::string>;
  EXPECT_EQ(search::query_words("Who saw the WHO? don't"), (V{"Who", "saw", "the", "don", "t"}));
  EXPECT_EQ(search::query_words("snake_case x2"), (V{"snake_case", "x2"}));
  EXPECT_EQ(search::query_words("Straße ΔΈΛΤΑ δέλτα हिन्दी"), (V{"Straße", "ΔΈΛΤΑ", "हिन्दी"}));
  EXPECT_EQ(search::query_words("?! --- \"\" "), V{});
  EXPECT_EQ(search::query_words("a\xFF"
                                "b\xE2\x82"),
            (V{"a", "b"}));
  EXPECT_EQ(search::match_any(V{"a", "OR", "b\"c"}), R"("a" OR "OR" OR "b""c")");
}

TEST(LexicalIndex, NothingInAQuestionIsAnOperator) {
  MemoryTable table({"apples and pears", "NEAR the tree", "text"});
  const LexicalIndex index(table.db(), "words");
  for (const char* q :
       {"apples AND nothing", "NOT pears", "NEAR(apples pears, 2)", "text:apples", "app* ^apples",
        "\"apples", "(apples", "apples'; DROP TABLE words; --", "{a} + b - c"}) {
    EXPECT_NO_THROW((void)index.search(q, 10)) << q;
  }
  EXPECT_EQ(ids_of(index.search("apples AND nothing", 10)), (std::vector<std::int64_t>{1}));
  EXPECT_EQ(ids_of(index.search("text:apples", 10)), (std::vector<std::int64_t>{3, 1}));
  EXPECT_TRUE(index.search("?", 10).empty());
  EXPECT_TRUE(index.search("apples", 0).empty());
  EXPECT_EQ(index.size(), 3);
}

TEST(LexicalIndex, OrderIsThatOfBm25) {
  // Terms without stems; document lengths differ.
  const std::vector<std::vector<std::string>> documents = {
      {"cat", "dog", "cat", "fox"},
      {"cat"},
      {"dog", "emu", "emu", "emu", "emu", "emu", "emu"},
      {"emu", "fox", "owl"},
      {"owl", "owl"},
      {"hen"},
      {"hen", "owl", "emu"}};
  std::vector<std::string> spans;
  double total = 0;
  for (const auto& d : documents) {
    std::string text;
    for (const auto& w : d) text += w + " ";
    spans.push_back(text);
    total += static_cast<double>(d.size());
  }
  MemoryTable table(spans);
  const LexicalIndex index(table.db(), "words");
  const auto n = static_cast<double>(documents.size());
  for (const std::vector<std::string>& query :
       {std::vector<std::string>{"cat", "fox"}, {"emu"}, {"dog", "owl", "cat", "hen"}}) {
    std::map<std::int64_t, double> want;
    std::string text;
    for (const auto& w : query) {
      text += w + " ";
      const auto df =
          static_cast<double>(std::count_if(documents.begin(), documents.end(), [&](const auto& d) {
            return std::count(d.begin(), d.end(), w) > 0;
          }));
      double idf = std::log((n - df + 0.5) / (df + 0.5));
      if (idf <= 0) idf = 1e-6;
      for (std::size_t i = 0; i < documents.size(); ++i) {
        const auto tf =
            static_cast<double>(std::count(documents[i].begin(), documents[i].end(), w));
        if (tf > 0) {
          want[static_cast<std::int64_t>(i) + 1] -=
              idf * tf * 2.2 /
              (tf + 1.2 * (0.25 + 0.75 * static_cast<double>(documents[i].size()) / (total / n)));
        }
      }
    }
    const auto hits = index.search(text, 100);
    ASSERT_EQ(hits.size(), want.size());
    for (std::size_t i = 0; i < hits.size(); ++i) {
      EXPECT_NEAR(hits[i].bm25, want[hits[i].id], 1e-9);
      if (i > 0) {
        EXPECT_TRUE(hits[i - 1].bm25 < hits[i].bm25 ||
                    (hits[i - 1].bm25 == hits[i].bm25 && hits[i - 1].id < hits[i].id));
      }
    }
  }
}

TEST(LexicalIndex, LeavingOutWhatIsEverywhereChangesNothingThatTells) {
  // The same spans in a table just too small for it: the order of what the other words tell apart
  // is the same.
  std::mt19937 random(4);
  MemoryTable small, large;
  small.run("BEGIN");
  large.run("BEGIN");
  for (std::int64_t id = 1; id <= search::kManySpans; ++id) {
    std::string text = "the of";
    for (auto n = random() % 6; n > 0; --n) text += " w" + std::to_string(random() % 100);
    if (id < search::kManySpans) small.add(id, text);
    large.add(id, id < search::kManySpans ? text : "the of and");
  }
  small.run("COMMIT");
  large.run("COMMIT");
  const LexicalIndex with(small.db(), "words"), without(large.db(), "words");
  const auto a = with.search("the w5 of w17 w80", 4000),
             b = without.search("the w5 of w17 w80", 4000);
  ASSERT_LT(b.size(), 1000U);  // only what holds a telling word
  for (std::size_t i = 0; i < b.size(); ++i) EXPECT_NEAR(a[i].bm25, b[i].bm25, 0.01);
  EXPECT_EQ(without.search("the of", 5000).size(), 4096U);
}

TEST(LexicalIndex, RestrictionLooksAtAllOfThoseIds) {
  MemoryTable table;
  for (std::int64_t id = 1; id <= 500; ++id)
    table.add(id, id % 50 == 0 ? "common filler filler filler filler rare" : "common");
  const LexicalIndex index(table.db(), "words");
  // The restricted spans rank last of all: a filter behind the first twenty would lose them.
  const std::vector<std::int64_t> within = {100, 250, 499, 7777};
  EXPECT_EQ(ids_of(index.search("common", 2, &within)), (std::vector<std::int64_t>{499, 100}));
  const std::vector<std::int64_t> none;
  EXPECT_TRUE(index.search("common", 20, &none).empty());
}

TEST(LexicalIndex, TermsAreThoseOfTheTable) {
  const std::vector<std::string> spans = {
      "Running runners ran; the CITIES' café, naïve co-operation_of 3.14 things. Ünïcode ΔΈΛΤΑ "
      "Straße!",
      "running", ""};
  MemoryTable table(spans);
  const LexicalIndex index(table.db(), "words");
  table.run("CREATE VIRTUAL TABLE temp.vocabulary USING fts5vocab(main, words, instance)");
  std::vector<std::set<std::string>> want(spans.size());
  sqlite3_stmt* s = nullptr;
  ASSERT_EQ(
      sqlite3_prepare_v2(table.db(), "SELECT term, doc FROM temp.vocabulary", -1, &s, nullptr),
      SQLITE_OK);
  while (sqlite3_step(s) == SQLITE_ROW) {
    want[static_cast<std::size_t>(sqlite3_column_int64(s, 1) - 1)].insert(
        reinterpret_cast<const char*>(sqlite3_column_text(s, 0)));
  }
  sqlite3_finalize(s);
  for (std::size_t i = 0; i < spans.size(); ++i) EXPECT_EQ(index.terms(spans[i]), want[i]);
  EXPECT_TRUE(want[0].contains("run") && want[0].contains("citi") && want[0].contains("cafe"));
}

TEST(LexicalIndex, CountsAndHoldersAgreeWithTheTerms) {
  std::mt19937 random(3);
  const std::vector<std::string> words = {"running", "ran",   "runs",           "city",
                                          "cities",  "co-op", "naïve",          "Zug",
                                          "züge",    "x_y",   "generalization", "general"};
  std::vector<std::string> spans;
  for (int i = 0; i < 60; ++i) {
    std::string text;
    for (auto n = random() % 5; n > 0; --n) text += words[random() % words.size()] + " ";
    spans.push_back(text);
  }
  MemoryTable table(spans);
  const LexicalIndex index(table.db(), "words");
  std::vector<std::int64_t> ids;
  for (std::int64_t id = 60; id >= 1; id -= 2) ids.push_back(id);
  for (const auto& word : words) {
    for (const auto& term : index.split(word)) {
      std::int64_t df = 0;
      for (const auto& span : spans) df += index.terms(span).contains(term.stem);
      EXPECT_EQ(index.document_frequency(term), df) << term.stem;
      const auto held = index.holds(term, ids);
      for (std::size_t i = 0; i < ids.size(); ++i)
        EXPECT_EQ(held[i],
                  index.terms(spans[static_cast<std::size_t>(ids[i] - 1)]).contains(term.stem));
    }
  }
}

TEST(LexicalIndex, VeryLongQuestionIsSearched) {
  MemoryTable table({"word77 here", "nothing"});
  const LexicalIndex index(table.db(), "words");
  std::string question;
  for (int i = 0; i < 5000; ++i) question += "word" + std::to_string(i) + " ";
  EXPECT_EQ(ids_of(index.search(question, 10)), (std::vector<std::int64_t>{1}));
}

TEST(LexicalIndex, ContentlessTableAndOddNameServeToo) {
  MemoryTable table;
  table.run(
      "CREATE VIRTUAL TABLE \"sp\"\"an words\" USING fts5(text, content = '', tokenize = 'porter "
      "unicode61')");
  table.run("INSERT INTO \"sp\"\"an words\"(rowid, text) VALUES (5, 'lazy dogs'), (6, 'dog')");
  const LexicalIndex index(table.db(), "sp\"an words");
  EXPECT_EQ(ids_of(index.search("dog", 10)), (std::vector<std::int64_t>{6, 5}));
  EXPECT_EQ(index.size(), 2);
  EXPECT_EQ(index.document_frequency(index.split("dogs")[0]), 2);
}

TEST(LexicalIndex, WrongTableIsRefused) {
  MemoryTable table;
  table.run("CREATE TABLE plain(text)");
  for (const char* name : {"none", "plain"}) {
    try {
      const LexicalIndex index(table.db(), name);
      ADD_FAILURE() << name;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Errc::not_found);
    }
  }
}

}  // namespace
}  // namespace mneme
