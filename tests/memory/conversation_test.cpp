// Chatting and writing on with the default model: what a reply came from, what forgetting takes along, what is placed.
#include "mneme/core/error.h"
#include "mneme/memory/memory.h"
#include "mneme/memory/reader.h"
#include "mneme/memory/span_states.h"

#include "tests/memory/memory_fixture.h"
#include "tests/tensor_check.h"
#include <algorithm>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <string>
#include <utility>
#include <vector>

namespace mneme {
namespace {

const std::string kSecret =
    "The password of the Zephyrine archive is quokkabramble. It was chosen by the archivist Ilse "
    "Horn in the year 1972, and "
    "it has never been changed since, because nobody but her knows how to change it.\n";
const std::string kHarbour =
    "The harbour of Tarrow was dug by convicts in the winter of 1811. It silted up within thirty "
    "years, and today only "
    "fishing boats of shallow draught can enter it at high tide.\n";

std::shared_ptr<MemoryModels> models() {
  static const auto models = std::make_shared<MemoryModels>("", "");
  return models;
}

MemoryOptions creating(const std::string& kv = "") {
  MemoryOptions options;
  options.access = MemoryFile::Access::create;
  options.kv = kv;
  return options;
}

std::unique_ptr<Memory> memory_of(const check::Folder& folder,
                                  const std::vector<std::pair<std::string, std::string>>& texts,
                                  const ReadOptions& options = {}) {
  auto memory = Memory::open(folder / "m.mneme", models(), creating());
  std::vector<Document> documents;
  for (const auto& [label, text] : texts) documents.push_back(document_from_text(label, text));
  memory->read(std::move(documents), options);
  return memory;
}

ChatReply say(Memory& memory, const std::string& message, std::int64_t max_tokens = 24) {
  ChatOptions options;
  options.max_tokens = max_tokens;
  options.seed = 1;
  return memory.chat("default", message, options);
}

TEST(Conversation, WhatRepeatsAForgottenSourceGoesWithIt) {
  const check::Folder folder;
  auto memory = memory_of(folder, {{"secret", kSecret}, {"harbour", kHarbour}});
  const auto reply = say(*memory, "What is the password of the Zephyrine archive?");
  EXPECT_NE(reply.text.find("quokkabramble"), std::string::npos) << reply.text;
  ASSERT_FALSE(reply.citations.empty());
  EXPECT_EQ(reply.citations[0].source, "secret");
  say(*memory, "Please repeat it.");
  say(*memory, "Say again what you told me before.");
  const auto secret = memory->file().find_document("secret")->document.id;
  for (const auto& turn : memory->file().turns("default")) {
    if (turn.role != "assistant") continue;
    EXPECT_NE(std::find(turn.provenance.begin(), turn.provenance.end(), secret),
              turn.provenance.end())
        << turn.number << ": " << turn.text;
  }
  memory->file().forget("secret");
  memory->file().close();
  EXPECT_EQ(check::file_bytes(folder / "m.mneme").find("quokkabramble"), std::string::npos);
}

TEST(Conversation, AFollowUpIsFoundByTheTurnsBefore) {
  const check::Folder folder;
  auto memory = memory_of(folder, {{"secret", kSecret}, {"harbour", kHarbour}});
  say(*memory, "Who dug the harbour of Tarrow?");
  const auto reply = say(*memory, "And when was that?");
  ASSERT_FALSE(reply.citations.empty()) << reply.note;
  EXPECT_EQ(reply.citations[0].source, "harbour") << reply.text;
}

TEST(Conversation, AFollowUpIsAboutWhatWasTalkedOfThoughOthersHoldItsWords) {
  const check::Folder folder;
  std::vector<std::pair<std::string, std::string>> texts;
  const char* things[] = {"harp", "kiln", "loom", "forge", "ferry", "press", "organ", "still"};
  for (int i = 0; i < 8; ++i) {
    texts.emplace_back(
        things[i],
        fmt::format("The old {} of the village was bought in {} by the miller's family, who "
                    "paid {} crowns for it and kept it in the barn behind the church.\n",
                    things[i], 1756 + 7 * i, 101 + 13 * i));
  }
  auto memory = memory_of(folder, texts);
  say(*memory, "Where is the old ferry of the village kept?");
  const auto reply = say(*memory, "And when was it bought?");
  ASSERT_FALSE(reply.citations.empty()) << reply.note;
  EXPECT_EQ(reply.citations[0].source, "ferry") << reply.text;
}

TEST(Conversation, AWordThatPointsBackDoesNotHoldToTheTopicBefore) {
  const check::Folder folder;
  auto memory = memory_of(folder, {{"secret", kSecret}, {"harbour", kHarbour}});
  say(*memory, "Who dug the harbour of Tarrow?");
  say(*memory, "And when was that?");
  const auto reply = say(*memory, "What is the password that opens that Zephyrine archive?");
  ASSERT_FALSE(reply.citations.empty()) << reply.note;
  EXPECT_EQ(reply.citations[0].source, "secret") << reply.text;
  EXPECT_EQ(reply.text, "quokkabramble");
}

TEST(Conversation, AReaderRepliesAsItAnswers) {
  const check::Folder folder;
  auto memory = memory_of(folder, {{"secret", kSecret}, {"harbour", kHarbour}});
  std::string streamed;
  for (const auto* question :
       {"Who dug the harbour of Tarrow?", "What is the password of the Zephyrine archive?"}) {
    streamed.clear();
    ChatOptions options;
    options.on_text = [&](std::string_view text) {
      streamed += text;
      return true;
    };
    const auto reply = memory->chat("default", question, options);
    const auto answer = memory->ask(question, {});
    EXPECT_EQ(reply.text, answer.answer);
    EXPECT_EQ(streamed, reply.text);
    ASSERT_FALSE(reply.citations.empty());
    EXPECT_EQ(reply.citations[0].start, answer.citations.at(0).start);
    EXPECT_EQ(reply.citations[0].source, answer.citations.at(0).source);
  }
}

TEST(Conversation, AQuestionOnOtherThingsIsNotAnsweredByInvention) {
  const check::Folder folder;
  auto memory = memory_of(folder, {{"secret", kSecret}, {"harbour", kHarbour}});
  const auto reply = say(*memory, "Who won the football championship of Brazil?");
  EXPECT_EQ(reply.text, "not found in memory");
  EXPECT_TRUE(reply.from_memory);
  EXPECT_TRUE(reply.citations.empty());
  // What is no question has no answer to look for; that the reply is no reading is told before it.
  std::string order;
  ChatOptions options;
  options.max_tokens = 8;
  options.on_note = [&](std::string_view) { order += 'n'; };
  options.on_text = [&](std::string_view) {
    order += 't';
    return true;
  };
  const auto greeting = memory->chat("default", "Hello!", options);
  EXPECT_FALSE(greeting.from_memory);
  EXPECT_TRUE(order.starts_with("nt")) << order;
  EXPECT_EQ(order.find('n', 1), std::string::npos) << order;
}

TEST(Conversation, AVeryLongTurnDoesNotBlockTheNext) {
  const check::Folder folder;
  auto memory = memory_of(folder, {{"harbour", kHarbour}});
  std::string question = "Tell me about the harbour of Tarrow";
  for (int i = 0; i < 6800; ++i) question += " again";
  say(*memory, question, 4);
  const auto reply = say(*memory, "Who dug the harbour of Tarrow?");
  ASSERT_FALSE(reply.citations.empty()) << reply.note;
  EXPECT_NE(reply.text.find("onvicts"), std::string::npos) << reply.text;  // in either case
}

TEST(Conversation, AQuestionGoesWithItsForgottenAnswer) {
  const check::Folder folder;
  auto memory = memory_of(folder, {{"secret", kSecret}, {"harbour", kHarbour}});
  say(*memory, "Is it true that the password of the Zephyrine archive is quokkabramble?");
  EXPECT_EQ(memory->file().turns("default").size(), 2U);
  memory->file().forget("secret");
  EXPECT_TRUE(memory->file().turns("default").empty());
  memory->file().close();
  EXPECT_EQ(check::file_bytes(folder / "m.mneme").find("quokkabramble"), std::string::npos);
}

TEST(Conversation, AReplyThatWasCutSaysSo) {
  const check::Folder folder;
  auto memory = memory_of(folder, {{"harbour", kHarbour}});
  EXPECT_TRUE(say(*memory, "Who dug the harbour of Tarrow?", 1).cut);
  EXPECT_FALSE(say(*memory, "Who dug the harbour of Tarrow?", 24).cut);
}

TEST(Conversation, AWordThatSaysNothingIsNotFoundInMemory) {
  const check::Folder folder;
  auto memory = memory_of(folder, {{"secret", kSecret}, {"harbour", kHarbour}});
  EXPECT_FALSE(memory->ask("Thanks", {}).found);
  EXPECT_FALSE(memory->ask("What year?", {}).found);
  EXPECT_TRUE(say(*memory, "Hello!").citations.empty());
  EXPECT_TRUE(memory->ask("What is the password of the archive?", {}).found);
}

TEST(Conversation, NothingFitsBesideAVeryLongQuestion) {
  const check::Folder folder;
  auto memory = memory_of(folder, {{"harbour", kHarbour}});
  std::string question = "Who dug the harbour of Tarrow";
  for (int i = 0; i < 9000; ++i) question += " indeed";
  AskOptions always;
  always.always = true;
  check::expect_error(Errc::full, "shorten it by",
                      [&] { (void)memory->ask(question + "?", always); });
  // A long reply may be asked for: it does not push the passages out.
  EXPECT_FALSE(say(*memory, "Who dug the harbour of Tarrow?", 7000).citations.empty());
}

TEST(Continuation, GoesOnInTheTextAndKeepsItsStates) {
  const check::Folder folder;
  std::string text;
  for (int i = 0; i < 12; ++i)
    text += "On the " + std::to_string(i + 2) +
            "th day of the voyage the wind fell, and the crew of the Halcyon mended sails, told "
            "old stories and waited for the weather to turn. The cook, who had been at sea for "
            "forty years, said that he had seen worse, and that the sea gives back what it takes. "
            "Nobody believed him, but nobody said so either.\n\n";
  text +=
      "In the evening the captain came on deck, looked at the sky, and said to the helmsman that";
  auto memory = memory_of(folder, {{"voyage", text}});
  const auto first = memory->continue_text(40, {}, 1, "", {});
  EXPECT_GT(first.generated_tokens, 5);
  EXPECT_EQ(first.text.find("Question:"), std::string::npos) << first.text;
  EXPECT_EQ(first.text.find("Passage:"), std::string::npos) << first.text;
  EXPECT_GT(first.tokens_placed, 0);
  const auto again = memory->continue_text(40, {}, 1, "", {});
  EXPECT_EQ(again.text, first.text);
  EXPECT_EQ(again.tokens_placed, first.tokens_placed);
  EXPECT_LT(again.document_tokens_evaluated, first.document_tokens_evaluated);
}

TEST(Memory, StreamedStatesAreNotComparedSpanBySpan) {
  const check::Folder folder;
  ReadOptions stream;
  stream.context = ContextMode::stream;
  auto memory = memory_of(folder, {{"harbour", kHarbour}}, stream);
  EXPECT_TRUE(memory->verify(0, 1).ok());
  check::expect_error(Errc::unsupported, "leave out --deep", [&] { (void)memory->verify(3, 1); });
}

TEST(Memory, AStateThatSawItsSpanAloneDoesNotPassForAStreams) {
  const check::Folder folder;
  auto memory = memory_of(folder, {{"harbour", kHarbour}});
  auto& file = memory->file();
  const std::pair<std::string, std::string> stream[] = {{"context", "stream"}};
  file.set_meta(stream);
  const Reader reader(models()->language_model(""), memory->prompt(), parse_chain(memory->kv()));
  std::vector<std::int64_t> spans;
  file.for_each_passage([&](const Span& span) { spans.push_back(span.id); });
  ASSERT_FALSE(spans.empty());
  {
    memory::SpanStates states(file, reader);
    EXPECT_FALSE(states.load(spans).front().from_file);
    states.store();
  }
  memory::SpanStates states(file, reader);
  EXPECT_FALSE(states.has(spans.front())) << "the stream has yet to come by";
  EXPECT_TRUE(states.load(spans).front().from_file) << "until then it is not read again";
}

}  // namespace
}  // namespace mneme
