#include "mneme/weights/checkpoint.h"
#include "mneme/weights/digests.h"

#include <ATen/ATen.h>

#include "scratch.h"

namespace mneme {
namespace {

using testing::expect_error;

class HuggingFace : public testing::ScratchTest {
 protected:
  void weights(const std::string& name, const std::map<std::string, at::Tensor>& tensors) const {
    std::filesystem::create_directories((folder_ / name).parent_path());
    write_safetensors(folder_ / name, tensors);
  }
  void refuses(Errc code, const std::string& part) const {
    expect_error(code, part, [&] { (void)open_checkpoint(folder_); });
  }
};

TEST_F(HuggingFace, OneFile) {
  write("config.json", R"({"model_type": "llama", "hidden_size": 2})");
  write("generation_config.json", R"({"eos_token_id": 2})");
  weights("model.safetensors", {{"a", at::ones({2})}, {"ids", at::ones({2}, at::kLong)}});
  const auto checkpoint = open_checkpoint(folder_);
  EXPECT_EQ(checkpoint->format(), "huggingface");
  EXPECT_EQ(checkpoint->path(), folder_);
  EXPECT_EQ(checkpoint->metadata()["config"]["model_type"], "llama");
  EXPECT_EQ(checkpoint->metadata()["generation_config"]["eos_token_id"], 2);
  EXPECT_EQ(checkpoint->names(), std::vector<std::string>{"a"});
  EXPECT_TRUE(at::equal(to_tensor(checkpoint->tensor("a")), at::ones({2})));
}

TEST_F(HuggingFace, Shards) {
  write("config.json", "{}");
  weights("model-1.safetensors", {{"a", at::ones({2})}});
  weights("model-2.safetensors", {{"b", at::zeros({3})}, {"c", at::zeros({1})}});
  write("model.safetensors.index.json",
        R"({"metadata": {}, "weight_map": {"a": "model-1.safetensors",)"
        R"("b": "model-2.safetensors", "c": "model-2.safetensors"}})");
  const auto checkpoint = open_checkpoint(folder_);
  EXPECT_EQ(checkpoint->names(), (std::vector<std::string>{"a", "b", "c"}));
  EXPECT_EQ(checkpoint->tensor("b").shape, std::vector<std::int64_t>{3});
  expect_error(Errc::not_found, "has no tensor 'd'", [&] { (void)checkpoint->tensor("d"); });

  write("model.safetensors.index.json", R"({"weight_map": {"b": "model-1.safetensors"}})");
  refuses(Errc::corrupt, "says that 'b' is in model-1.safetensors, and it is not");
  write("model.safetensors.index.json", R"({"weight_map": {"a": "model-3.safetensors"}})");
  refuses(Errc::not_found, "model-3.safetensors");
  weights("model-3.safetensors", {{"a", at::ones({2})}, {"z", at::ones({1})}});
  write("model.safetensors.index.json",
        R"({"weight_map": {"a": "model-1.safetensors", "z": "model-3.safetensors"}})");
  refuses(Errc::corrupt, "tensor 'a' is also in another file");
  for (const auto* outside : {"../x.safetensors", "/etc/passwd", "a/../../x", ""}) {
    write("model.safetensors.index.json", nlohmann::json{{"weight_map", {{"a", outside}}}}.dump());
    refuses(Errc::corrupt, "not below its folder");
  }
  for (const auto* bad : {"[]", "{}", R"({"weight_map": []})"}) {
    write("model.safetensors.index.json", bad);
    refuses(Errc::corrupt, "has no weight_map");
  }
  write("model.safetensors.index.json", R"({"weight_map": {"a": 1}})");
  refuses(Errc::corrupt, "maps 'a' to something");
}

TEST_F(HuggingFace, SentenceTransformers) {
  const auto modules = [](const std::string& transformer) {
    return R"([{"path": ")" + transformer +
           R"(", "type": "sentence_transformers.models.Transformer"},)" +
           R"({"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},)" +
           R"({"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}])";
  };
  write("modules.json", modules(""));
  write("config.json", R"({"model_type": "bert"})");
  write("sentence_bert_config.json", R"({"max_seq_length": 256})");
  write("1_Pooling/config.json", R"({"pooling_mode_mean_tokens": true})");
  weights("model.safetensors", {{"a", at::ones({2})}});
  {
    const auto checkpoint = open_checkpoint(folder_);
    EXPECT_EQ(checkpoint->metadata()["pooling"]["pooling_mode_mean_tokens"], true);
    EXPECT_EQ(checkpoint->metadata()["sentence_bert_config"]["max_seq_length"], 256);
    EXPECT_EQ(checkpoint->metadata()["modules"].size(), 3U);
  }
  // Older models keep the transformer in a folder of its own.
  write("0_Transformer/config.json", R"({"model_type": "mpnet"})");
  weights("0_Transformer/model.safetensors", {{"b", at::ones({2})}});
  write("modules.json", modules("0_Transformer"));
  {
    const auto checkpoint = open_checkpoint(folder_);
    EXPECT_EQ(checkpoint->metadata()["config"]["model_type"], "mpnet");
    EXPECT_TRUE(checkpoint->has("b"));
  }
  write("modules.json", modules("../elsewhere"));
  refuses(Errc::corrupt, "modules.json: is not a list of modules");
  for (const auto* bad : {"{}", "[1]", "[{}]", R"([{"path": 1, "type": "x"}])"}) {
    write("modules.json", bad);
    refuses(Errc::corrupt, "is not a list of modules");
  }
}

TEST_F(HuggingFace, DigestCoversWeightsAndConfiguration) {
  write("config.json", R"({"hidden_size": 2})");
  weights("model.safetensors", {{"a", at::ones({2})}});
  const auto digest = [&] { return open_checkpoint(folder_)->digest(); };
  const auto first = digest();
  EXPECT_EQ(first.size(), 64U);
  EXPECT_EQ(digest(), first);
  write("README.md", "words");
  write("generation_config.json", "{}");
  EXPECT_EQ(digest(), first) << "what does not decide the result does not count";
  write("config.json", R"({"hidden_size": 4})");
  const auto second = digest();
  EXPECT_NE(second, first);
  weights("model.safetensors", {{"a", at::zeros({2})}});
  const auto third = digest();
  EXPECT_NE(third, second);
  write("modules.json", R"([{"path": "1_Pooling", "type": "Pooling"}])");
  write("1_Pooling/config.json", R"({"cls": true})");
  const auto fourth = digest();
  EXPECT_NE(fourth, third);
  write("1_Pooling/config.json", R"({"cls": false})");
  EXPECT_NE(digest(), fourth);

  // The place does not count, only the content.
  const auto copy = folder_.string() + "-copy";
  std::filesystem::copy(folder_, copy, std::filesystem::copy_options::recursive);
  EXPECT_EQ(open_checkpoint(copy)->digest(), digest());
  std::filesystem::remove_all(copy);
}

TEST_F(HuggingFace, DigestOfOneFileIsTheFilesOwn) {
  weights("m.safetensors", {{"a", at::ones({2})}});
  EXPECT_EQ(open_checkpoint(folder_ / "m.safetensors")->digest(),
            file_digest(folder_ / "m.safetensors"));
}

TEST_F(HuggingFace, SaysWhatIsMissing) {
  refuses(Errc::not_found, "has no config.json");
  write("config.json", "{");
  refuses(Errc::corrupt, "config.json: is not valid JSON");
  write("config.json", std::string(100'000, '['));
  refuses(Errc::corrupt, "levels");
  write("config.json", "{}");
  refuses(Errc::not_found, "has neither model.safetensors nor");
  write("pytorch_model.bin", "");
  refuses(Errc::unsupported, "save the model as safetensors");
}

TEST_F(HuggingFace, FilesWithoutAnExtensionAreKnownByTheirContent) {
  weights("m.safetensors", {{"a", at::ones({2})}});
  std::filesystem::rename(folder_ / "m.safetensors", folder_ / "blob");
  EXPECT_EQ(open_checkpoint(folder_ / "blob")->format(), "safetensors");
  EXPECT_EQ(open_checkpoint(write("blob2", testing::GgufText{}.bytes()))->format(), "gguf");
  expect_error(Errc::unsupported, "is not a model that can be read",
               [&] { (void)open_checkpoint(write("text", "Just some text.")); });
  expect_error(Errc::unsupported, "is not a model that can be read",
               [&] { (void)open_checkpoint(write("none", "")); });
}

}  // namespace
}  // namespace mneme
