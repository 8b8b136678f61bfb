// Checkpoints that lack a weight, or bring one without a place, are refused: what is missing is never made up.
#include "mneme/models/architecture.h"

#include "mneme/models/model.h"
#include "mneme/weights/safetensors.h"

#include <ATen/ATen.h>

#include "tests/folder_test.h"
#include "tests/tensor_check.h"
#include "tests/weights/scratch.h"
#include <gtest/gtest.h>
#include <map>
#include <vector>

namespace mneme {
namespace {

using Tensors = std::map<std::string, at::Tensor>;

/// A Hugging Face llama of one layer, all its weights.
Tensors llama() {
  Tensors out{{"model.embed_tokens.weight", at::ones({5, 8})},
              {"model.norm.weight", at::ones({8})}};
  const auto in_layer = [&](const char* name, std::vector<std::int64_t> sizes) {
    out["model.layers.0." + std::string(name) + ".weight"] = at::ones(sizes);
  };
  for (const auto* norm : {"input_layernorm", "post_attention_layernorm"}) in_layer(norm, {8});
  for (const auto* projection : {"q", "k", "v", "o"})
    in_layer((std::string("self_attn.") + projection + "_proj").c_str(), {8, 8});
  for (const auto* projection : {"gate", "up"})
    in_layer((std::string("mlp.") + projection + "_proj").c_str(), {16, 8});
  in_layer("mlp.down_proj", {8, 16});
  return out;
}

class ArchitectureTest : public check::FolderTest {
 protected:
  void load(const Tensors& tensors) const {
    write("config.json", R"({"model_type": "llama", "hidden_size": 8,
    "num_hidden_layers": 1, "max_position_embeddings": 16, "num_attention_heads": 2, "intermediate_size": 16,
    "vocab_size": 5, "tie_word_embeddings": true})");
    write_safetensors(folder_ / "model.safetensors", tensors);
    const auto checkpoint = open_checkpoint(folder_);
    Params params;
    const auto architecture = load_architecture(*checkpoint, params);
    static_cast<void>(build_model(*checkpoint, architecture, params));
  }
};

TEST_F(ArchitectureTest, AWholeCheckpointLoads) { EXPECT_NO_THROW(load(llama())); }

TEST_F(ArchitectureTest, AMissingWeightIsNamed) {
  for (const auto& [name, tensor] : llama()) {
    if (name == "model.embed_tokens.weight") continue;  // below
    auto tensors = llama();
    tensors.erase(name);
    check::expect_error(Errc::corrupt, "is missing, or has a name that is not known",
                        [&] { load(tensors); });
  }
  auto tensors = llama();
  tensors.erase("model.embed_tokens.weight");
  check::expect_error(Errc::corrupt, "'embed.weight'", [&] { load(tensors); });
}

TEST_F(ArchitectureTest, AWeightWithoutAPlaceIsNotDropped) {
  auto tensors = llama();
  tensors["model.layers.0.self_attn.q_proj.bias"] = at::ones({8});
  check::expect_error(Errc::unsupported, "self_attn.q_proj.bias", [&] { load(tensors); });
  tensors = llama();
  tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = at::ones({2});
  EXPECT_NO_THROW(load(tensors));
}

TEST_F(ArchitectureTest, AnEmbeddingOfNoDimensionsIsRefused) {
  using testing::GgufText;
  using testing::raw;
  const auto number = [](std::uint32_t n) { return GgufText::value(4, raw(n)); };
  GgufText gguf;
  gguf.pairs = {{"general.architecture", GgufText::value(8, GgufText::text("llama"))},
                {"llama.embedding_length", number(8)},
                {"llama.block_count", number(1)},
                {"llama.context_length", number(16)},
                {"llama.attention.head_count", number(2)},
                {"llama.feed_forward_length", number(16)},
                {"llama.attention.layer_norm_rms_epsilon", GgufText::value(6, raw(1e-5f))}};
  gguf.tensors = {{"token_embd.weight", {}, 0, 0}};
  gguf.data = raw(1.0f);
  const auto load_file = [&](const std::filesystem::path& file) {
    const auto checkpoint = open_checkpoint(file);
    Params params;
    static_cast<void>(load_architecture(*checkpoint, params));
  };
  check::expect_error(Errc::corrupt, "has 0 dimensions where 2 are wanted",
                      [&] { load_file(write("m.gguf", gguf.bytes())); });
  // The table that scales rotary frequencies changes every position.
  gguf.tensors = {{"token_embd.weight", {1, 1}, 0, 0}, {"rope_freqs.weight", {1}, 0, 32}};
  gguf.data.resize(64);
  check::expect_error(Errc::unsupported, "'rope_freqs.weight' has no place",
                      [&] { load_file(write("scaled.gguf", gguf.bytes())); });
}

}  // namespace
}  // namespace mneme
