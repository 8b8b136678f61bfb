// Reading with the default models: an interrupted reading keeps what it did and goes on from there.
#include "mneme/memory/memory.h"

#include "tests/memory/memory_fixture.h"
#include <fmt/format.h>
#include <gtest/gtest.h>

namespace mneme {
namespace {

std::string many_paragraphs(int n) {
  std::string text;
  for (int i = 0; i < n; ++i) {
    text += fmt::format(
        "The lighthouse of island number {} was built by the mason Ravel{} in the spring of its "
        "year. Its lamp burns "
        "fish oil, its stair has {} steps, and on clear nights it is seen from the harbour across "
        "the strait, where "
        "the pilots keep a list of all the lamps that they trust.\n\n",
        i, i, 40 + i);
  }
  return text;
}

TEST(Reading, AnInterruptedReadingKeepsWhatItDidAndGoesOn) {
  const check::Folder folder;
  const auto models = std::make_shared<MemoryModels>("", "");
  MemoryOptions creating;
  creating.access = MemoryFile::Access::create;
  const auto document = document_from_text("islands", many_paragraphs(400));
  ReadOptions options;
  int calls = 0;
  options.cancelled = [&] {
    return ++calls > 2;
  };  // before the document, before its second batch, then
  std::int64_t spans = 0;
  {
    auto memory = Memory::open(folder / "m.mneme", models, creating);
    const auto report = memory->read({document}, options);
    EXPECT_TRUE(report.interrupted);
    ASSERT_EQ(report.sources.size(), 1u);
    EXPECT_EQ(report.sources[0].outcome, "interrupted");
    spans = report.sources[0].spans;
    EXPECT_GT(spans, 256);
    EXPECT_GT(report.tokens_read, 0);
    EXPECT_LT(report.tokens_read, report.sources[0].tokens);
    // What is there already is found by its words and answered from.
    ASSERT_FALSE(memory->search("lighthouse Ravel399", 3).empty());
  }
  auto memory = Memory::open(folder / "m.mneme", models, creating);
  const auto embedder = models->embedder("")->digest();
  const auto id = memory->documents().at(0).document.id;
  const auto left = static_cast<std::int64_t>(
      memory->file().passages_without(id, RepKind::embedding, embedder).size());
  EXPECT_EQ(left, spans - 256);
  EXPECT_EQ(memory->file().usage().unembedded_spans, left);
  const auto resumed = memory->read({document}, {});
  EXPECT_FALSE(resumed.interrupted);
  EXPECT_EQ(resumed.sources.at(0).outcome, "resumed");
  EXPECT_EQ(resumed.sources.at(0).spans, spans);
  EXPECT_TRUE(memory->file().passages_without(id, RepKind::embedding, embedder).empty());
  EXPECT_EQ(memory->read({document}, {}).sources.at(0).outcome, "unchanged");
  EXPECT_TRUE(memory->file().verify().ok());
  const auto found = memory->search("Who built the lighthouse of island number 399?", 1);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_GT(found[0].candidate.cosine, 0.5);
}

}  // namespace
}  // namespace mneme
