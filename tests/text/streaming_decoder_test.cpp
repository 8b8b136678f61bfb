#include "mneme/text/streaming_decoder.h"

#include "mneme/core/error.h"
#include "mneme/text/unicode.h"

#include "tokenizer_fixture.h"
#include <gtest/gtest.h>

namespace mneme {
namespace {

std::unique_ptr<Tokenizer> byte_tokenizer() {
  return tokenizer_from_gguf(
      testing::gguf_metadata({{"\xE2", "\x82"}, {"\xA9", " "}}, {"<|im_end|>"}));
}

TEST(StreamingDecoder, HoldsHalfACharacterBack) {
  const auto tokenizer = byte_tokenizer();
  StreamingDecoder decoder(*tokenizer);
  EXPECT_EQ(decoder.push('a'), "a");
  EXPECT_EQ(decoder.push(256), "");  // E2 82
  EXPECT_EQ(decoder.push(0xAC), "\u20ac");
  EXPECT_EQ(decoder.push(0xC3), "");
  EXPECT_EQ(decoder.push(257), "\u00e9 ");  // A9 and a blank
  EXPECT_EQ(decoder.finish(), "");
}

TEST(StreamingDecoder, ReplacesWhatCannotBeCompleted) {
  const auto tokenizer = byte_tokenizer();
  StreamingDecoder decoder(*tokenizer);
  EXPECT_EQ(decoder.push(0x80), "\ufffd");
  EXPECT_EQ(decoder.push(256), "");
  EXPECT_EQ(decoder.push('x'), "\ufffdx");
  EXPECT_EQ(decoder.push(0xF0), "");
  EXPECT_EQ(decoder.finish(), "\ufffd");
  EXPECT_EQ(decoder.finish(), "");
  EXPECT_EQ(decoder.push('y'), "y");
  EXPECT_THROW((void)decoder.push(99999), Error);
}

TEST(StreamingDecoder, SpecialTokens) {
  const auto tokenizer = byte_tokenizer();
  StreamingDecoder shown(*tokenizer), hidden(*tokenizer, true);
  EXPECT_EQ(shown.push(258), "<|im_end|>");
  EXPECT_EQ(hidden.push(258), "");
}

TEST(StreamingDecoder, PiecesTogetherAreTheWhole) {
  const auto tokenizer = byte_tokenizer();
  std::mt19937 random(4);
  for (int round = 0; round < 500; ++round) {
    std::vector<std::int32_t> ids(random() % 30);
    for (auto& id : ids) {
      const std::int32_t interesting[] = {'a',  0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xF0, 0x9F,
                                          0x98, 0x80, 0xED, 0xA0, 256,  257,  0xFF};
      id = random() % 4 ? interesting[random() % 15] : static_cast<std::int32_t>(random() % 258);
    }
    StreamingDecoder decoder(*tokenizer);
    std::string all;
    for (const auto id : ids) {
      const auto piece = decoder.push(id);
      ASSERT_TRUE(text::is_valid_utf8(piece));
      all += piece;
    }
    all += decoder.finish();
    ASSERT_EQ(all, text::replace_invalid_utf8(tokenizer->decode(ids)));
  }
}

TEST(StreamingDecoder, WordPieceWords) {
  const testing::TemporaryDirectory directory;
  directory.write("vocab.txt", "[UNK]\n[CLS]\n[SEP]\nhello\n##s\nworld\n!");
  const auto tokenizer = tokenizer_from_directory(directory.path());
  StreamingDecoder decoder(*tokenizer, true);
  std::string all;
  for (const std::int32_t id : {1, 3, 4, 5, 6, 2}) all += decoder.push(id);
  EXPECT_EQ(all + decoder.finish(), "hellos world!");
}

}  // namespace
}  // namespace mneme
