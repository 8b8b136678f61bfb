#include "mneme/weights/checkpoint.h"

#include <ATen/ATen.h>

#include "scratch.h"
#include <chrono>
#include <limits>

namespace mneme {
namespace {

using testing::expect_error;
using testing::GgufText;
using testing::raw;

class Gguf : public testing::ScratchTest {
 protected:
  std::unique_ptr<Checkpoint> open(const GgufText& text) {
    return open_checkpoint(write("m.gguf", text.bytes()));
  }
  void refuses(const GgufText& text, const std::string& part, Errc code = Errc::corrupt) {
    const auto path = write("m.gguf", text.bytes());
    expect_error(code, part, [&] { (void)open_checkpoint(path); });
    expect_error(code, path.string(), [&] { (void)open_checkpoint(path); });
  }
  static GgufText one_tensor() {
    return {.tensors = {{"w", {2}, 0, 0}}, .data = raw(std::vector<float>{1, 2})};
  }
};

TEST_F(Gguf, ReadsEveryKindOfMetadata) {
  GgufText text;
  text.pairs = {
      {"u8", GgufText::value(0, raw<std::uint8_t>(200))},
      {"i8", GgufText::value(1, raw<std::int8_t>(-100))},
      {"u16", GgufText::value(2, raw<std::uint16_t>(60000))},
      {"i16", GgufText::value(3, raw<std::int16_t>(-30000))},
      {"u32", GgufText::value(4, raw<std::uint32_t>(4000000000U))},
      {"i32", GgufText::value(5, raw<std::int32_t>(-2000000000))},
      {"f32", GgufText::value(6, raw(0.25f))},
      {"yes", GgufText::value(7, raw<std::uint8_t>(1))},
      {"text", GgufText::value(8, GgufText::text("μνήμη\n"))},
      {"list", GgufText::list(8, 2, GgufText::text("a") + GgufText::text(""))},
      {"nested",
       GgufText::list(9, 2,
                      raw<std::uint32_t>(5) + raw<std::uint64_t>(2) + raw<std::int32_t>(-1) +
                          raw<std::int32_t>(2) + raw<std::uint32_t>(7) + raw<std::uint64_t>(0))},
      {"u64", GgufText::value(10, raw(std::numeric_limits<std::uint64_t>::max()))},
      {"i64", GgufText::value(11, raw(std::numeric_limits<std::int64_t>::min()))},
      {"f64", GgufText::value(12, raw(1e300))},
      {"bytes", GgufText::value(8, GgufText::text("\xff\xfe"))},
  };
  for (const std::uint32_t version : {2U, 3U}) {
    text.version = version;
    const auto checkpoint = open(text);
    EXPECT_EQ(checkpoint->format(), "gguf");
    const auto& m = checkpoint->metadata();
    EXPECT_EQ(m.size(), text.pairs.size());
    EXPECT_EQ(m["u8"], 200);
    EXPECT_EQ(m["i8"], -100);
    EXPECT_EQ(m["u16"], 60000);
    EXPECT_EQ(m["i16"], -30000);
    EXPECT_EQ(m["u32"], 4000000000U);
    EXPECT_EQ(m["i32"], -2000000000);
    EXPECT_EQ(m["f32"], 0.25);
    EXPECT_EQ(m["yes"], true);
    EXPECT_EQ(m["text"], "μνήμη\n");
    EXPECT_EQ(m["list"], nlohmann::json({"a", ""}));
    EXPECT_EQ(m["nested"], nlohmann::json({nlohmann::json({-1, 2}), nlohmann::json::array()}));
    EXPECT_EQ(m["u64"], std::numeric_limits<std::uint64_t>::max());
    EXPECT_EQ(m["i64"], std::numeric_limits<std::int64_t>::min());
    EXPECT_EQ(m["f64"], 1e300);
    EXPECT_EQ(m["bytes"].get<std::string>(), "\xff\xfe");
    EXPECT_TRUE(checkpoint->names().empty());
  }
}

TEST_F(Gguf, PlacesTensorsByAlignmentAndReversesShapes) {
  for (const std::uint32_t alignment : {32U, 64U, 256U}) {
    GgufText text;
    text.alignment = alignment;
    if (alignment != 32) text.pairs = {{"general.alignment", GgufText::value(4, raw(alignment))}};
    text.tensors = {{"plain", {3, 2}, 0, 0},
                    {"blocks", {64, 2}, 8, alignment},
                    {"flags", {1}, 24, alignment * 2},
                    {"half", {}, 1, alignment * 3}};
    text.data.assign(alignment * 3 + 2, '\0');
    if (alignment == 32) {  // 136 bytes of blocks need room
      text.tensors[2].offset = 192, text.tensors[3].offset = 224;
      text.data.assign(226, '\0');
    } else if (alignment == 64) {
      text.tensors[2].offset = 256, text.tensors[3].offset = 320;
      text.data.assign(322, '\0');
    }
    const auto numbers = raw(std::vector<float>{1, 2, 3, 4, 5, 6});
    text.data.replace(0, numbers.size(), numbers);
    text.data.replace(text.data.size() - 2, 2, raw<std::uint16_t>(0x4000));
    const auto checkpoint = open(text);
    EXPECT_EQ(checkpoint->names(), (std::vector<std::string>{"plain", "blocks", "half"}))
        << "integer tensors are no weights";
    EXPECT_TRUE(at::equal(to_tensor(checkpoint->tensor("plain")),
                          at::tensor({1.f, 2.f, 3.f, 4.f, 5.f, 6.f}).view({2, 3})));
    const auto blocks = checkpoint->tensor("blocks");
    EXPECT_EQ(blocks.type, WeightType::q8_0);
    EXPECT_EQ(blocks.shape, (std::vector<std::int64_t>{2, 64}));
    EXPECT_EQ(blocks.bytes, 2 * 2 * 34);
    EXPECT_EQ(to_tensor(checkpoint->tensor("half")).item<float>(), 2.f);
    expect_error(Errc::unsupported, "type I8", [&] { (void)checkpoint->tensor("flags"); });
  }
}

TEST_F(Gguf, TensorsOutliveTheCheckpoint) {
  auto checkpoint = open(one_tensor());
  const auto weight = checkpoint->tensor("w");
  checkpoint.reset();
  EXPECT_TRUE(at::equal(dequantize(weight), at::tensor({1.f, 2.f})));
}

TEST_F(Gguf, NamesWhatIsMissingOrUnsupported) {
  GgufText text = one_tensor();
  text.tensors = {{"blk.0.attn_q.weight", {2}, 0, 0},
                  {"blk.0.ffn_up.weight", {256}, 12, 0},
                  {"future", {1}, 999, 0}};
  const auto checkpoint = open(text);
  expect_error(Errc::not_found, "did you mean 'blk.0.attn_q.weight'",
               [&] { (void)checkpoint->tensor("blk.0.attn_k.weight"); });
  expect_error(Errc::unsupported,
               "tensor 'blk.0.ffn_up.weight' has type Q4_K; supported are F32, F16, BF16, Q8_0, "
               "Q4_0 and Q4_1",
               [&] { (void)checkpoint->tensor("blk.0.ffn_up.weight"); });
  expect_error(Errc::unsupported, "type number 999", [&] { (void)checkpoint->tensor("future"); });
}

TEST_F(Gguf, RefusesWhatIsNoGguf) {
  expect_error(Errc::corrupt, "ends inside the magic",
               [&] { (void)open_checkpoint(write("m.gguf", "")); });
  expect_error(Errc::corrupt, "does not begin with 'GGUF'",
               [&] { (void)open_checkpoint(write("m.gguf", "GGML, not that")); });
  expect_error(Errc::not_found, "No such file",
               [&] { (void)open_checkpoint(folder_ / "absent.gguf"); });
  GgufText text;
  text.version = 1;
  refuses(text, "GGUF version 1; versions 2 and 3", Errc::unsupported);
  text.version = 0x03000000;
  refuses(text, "big-endian", Errc::unsupported);
}

TEST_F(Gguf, RefusesBadMetadata) {
  const auto with = [](const std::string& value) { return GgufText{.pairs = {{"k", value}}}; };
  refuses(with(GgufText::value(13, "")), "unknown type 13");
  refuses(with(GgufText::value(7, "\x02")), "boolean of value 2");
  refuses(with(GgufText::value(8, raw(std::numeric_limits<std::uint64_t>::max()))),
          "states 18446744073709551615");
  refuses(with(GgufText::list(12, std::uint64_t{1} << 60, "")), "length of a metadata list");
  refuses(with(GgufText::list(8, 1, raw<std::uint64_t>(1000))), "length of a metadata text");
  std::string deep = raw<std::uint32_t>(9);
  for (int i = 0; i < 100; ++i) deep += raw<std::uint32_t>(9) + raw<std::uint64_t>(1);
  refuses(with(deep + raw<std::uint32_t>(0) + raw<std::uint64_t>(0)), "deeper than 8");
  refuses({.pairs = {{"k", GgufText::value(0, "a")}, {"k", GgufText::value(0, "b")}}},
          "key 'k' twice");
  refuses({.pairs = {{"", GgufText::value(0, "a")}}}, "metadata key of 0 bytes");
  refuses({.pairs = {{"split.count", GgufText::value(2, raw<std::uint16_t>(3))}}},
          "split into 3 files", Errc::unsupported);
  EXPECT_NO_THROW(open({.pairs = {{"split.count", GgufText::value(2, raw<std::uint16_t>(1))}}}));
  EXPECT_NO_THROW(open({.pairs = {{"split.count", GgufText::value(8, GgufText::text("\xff"))}}}));
}

TEST_F(Gguf, RefusesBadTensors) {
  const auto with = [](std::vector<GgufText::Tensor> tensors) {
    auto text = one_tensor();
    text.tensors = std::move(tensors);
    return text;
  };
  refuses(with({{"w", {3}, 0, 0}}), "claims 12 bytes at offset 0 of 8");
  refuses(with({{"w", {2}, 0, 32}}), "at offset 32 of 8");
  refuses(with({{"w", {2}, 0, 4}}), "at offset 4");
  refuses(with({{"w", {2}, 0, std::numeric_limits<std::uint64_t>::max() - 31}}),
          "at offset 18446744073709551584");
  refuses(with({{"w", {2}, 12, 64}}), "at offset 64 of 8");
  refuses(with({{"w", {std::uint64_t{1} << 63}, 0, 0}}), "dimension of 9223372036854775808");
  refuses(with({{"w", {std::uint64_t{1} << 40, std::uint64_t{1} << 40}, 0, 0}}),
          "impossible shape");
  refuses(with({{"w", {std::uint64_t{1} << 62}, 0, 0}}), "impossible shape");
  refuses(with({{"w", {1, 1, 1, 1, 1, 1, 1, 1, 1}, 0, 0}}), "9 dimensions");
  refuses(with({{"w", {31}, 8, 0}}), "no whole blocks of Q8_0");
  refuses(with({{"w", {1}, 0, 0}, {"w", {1}, 0, 0}}), "is there twice");
  refuses(with({{"w", {1}, 0, 0}, {"v", {2}, 0, 0}}), "overlaps");
  refuses(with({{"", {1}, 0, 0}}), "a name of 0 bytes");
  refuses(with({{std::string(2000, 'n'), {1}, 0, 0}}), "a name of 2000 bytes");
  for (const std::uint32_t alignment : {0U, 3U, 48U}) {
    auto text = one_tensor();
    text.pairs = {{"general.alignment", GgufText::value(4, raw(alignment))}};
    refuses(text, "no power of two");
  }
}

TEST_F(Gguf, MessagesStayOnOneLine) {
  auto text = one_tensor();
  text.tensors[0].name = "a\nb\x1b[31m\xff";
  text.tensors[0].sizes = {3};
  refuses(text, R"('a\x0ab\x1b[31m\xff')");
}

// A vocabulary of the usual size must open at once: 100,000 strings.
TEST_F(Gguf, OpensALargeVocabularyQuickly) {
  std::string tokens, merges;
  for (int i = 0; i < 50'000; ++i) {
    tokens += GgufText::text("token" + std::to_string(i));
    merges += GgufText::text("left" + std::to_string(i) + " right" + std::to_string(i));
  }
  const auto path =
      write("v.gguf", GgufText{.pairs = {{"tokens", GgufText::list(8, 50'000, tokens)},
                                         {"merges", GgufText::list(8, 50'000, merges)}}}
                          .bytes());
  auto best = std::chrono::nanoseconds::max();
  for (int round = 0; round < 5; ++round) {
    const auto start = std::chrono::steady_clock::now();
    const auto checkpoint = open_checkpoint(path);
    best = std::min(best, std::chrono::nanoseconds(std::chrono::steady_clock::now() - start));
    ASSERT_EQ(checkpoint->metadata()["merges"][49'999], "left49999 right49999");
  }
  EXPECT_LT(std::chrono::duration<double>(best).count(), 0.06);
}

}  // namespace
}  // namespace mneme
