#include "mneme/models/architecture.h"

#include "mneme/core/error.h"
#include "mneme/core/registry.h"
#include "mneme/layers/stored_weight.h"
#include "mneme/models/model.h"

#include <algorithm>
#include <fmt/format.h>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

namespace mneme {
namespace {

using nlohmann::json;

/// Our name for a weight: the file's prefix of a layer, then a table of what stands in a layer and outside.
struct Names {
  std::string layer_prefix;                              // "blk." or "model.layers."
  std::map<std::string, std::string> in_layer, outside;  // file's -> ours
};

const Names& gguf_llama_names() {
  static const Names names{"blk.",
                           {{"attn_norm.weight", "norm1.weight"},
                            {"ffn_norm.weight", "norm2.weight"},
                            {"attn_q.weight", "attn.q.weight"},
                            {"attn_k.weight", "attn.k.weight"},
                            {"attn_v.weight", "attn.v.weight"},
                            {"attn_output.weight", "attn.out.weight"},
                            {"ffn_gate.weight", "mlp.gate.weight"},
                            {"ffn_up.weight", "mlp.up.weight"},
                            {"ffn_down.weight", "mlp.down.weight"}},
                           {{"token_embd.weight", "embed.weight"},
                            {"output_norm.weight", "norm.weight"},
                            {"output.weight", "head.weight"}}};
  return names;
}

const Names& huggingface_llama_names() {
  static const Names names{"model.layers.",
                           {{"input_layernorm.weight", "norm1.weight"},
                            {"post_attention_layernorm.weight", "norm2.weight"},
                            {"self_attn.q_proj.weight", "attn.q.weight"},
                            {"self_attn.k_proj.weight", "attn.k.weight"},
                            {"self_attn.v_proj.weight", "attn.v.weight"},
                            {"self_attn.o_proj.weight", "attn.out.weight"},
                            {"mlp.gate_proj.weight", "mlp.gate.weight"},
                            {"mlp.up_proj.weight", "mlp.up.weight"},
                            {"mlp.down_proj.weight", "mlp.down.weight"}},
                           {{"model.embed_tokens.weight", "embed.weight"},
                            {"model.norm.weight", "norm.weight"},
                            {"lm_head.weight", "head.weight"}}};
  return names;
}

const Names& huggingface_bert_names() {
  static const Names names = [] {
    Names out{"encoder.layer.", {}, {}};
    const std::map<std::string, std::string> parts{{"attention.self.query", "attn.q"},
                                                   {"attention.self.key", "attn.k"},
                                                   {"attention.self.value", "attn.v"},
                                                   {"attention.output.dense", "attn.out"},
                                                   {"attention.output.LayerNorm", "norm1"},
                                                   {"intermediate.dense", "mlp.up"},
                                                   {"output.dense", "mlp.down"},
                                                   {"output.LayerNorm", "norm2"}};
    for (const auto& [from, to] : parts) {
      for (const auto* part : {".weight", ".bias"}) out.in_layer[from + part] = to + part;
    }
    out.outside = {{"embeddings.word_embeddings.weight", "embed.weight"},
                   {"embeddings.position_embeddings.weight", "positions.weight"},
                   {"embeddings.token_type_embeddings.weight", "types.weight"},
                   {"embeddings.LayerNorm.weight", "norm.weight"},
                   {"embeddings.LayerNorm.bias", "norm.bias"}};
    return out;
  }();
  return names;
}

std::optional<std::string> our_name(const Names& names, std::string_view file_name) {
  if (const auto found = names.outside.find(std::string(file_name)); found != names.outside.end())
    return found->second;
  if (!file_name.starts_with(names.layer_prefix)) return std::nullopt;
  const auto rest = file_name.substr(names.layer_prefix.size());
  const auto dot = rest.find('.');
  if (dot == std::string_view::npos) return std::nullopt;
  const auto found = names.in_layer.find(std::string(rest.substr(dot + 1)));
  if (found == names.in_layer.end()) return std::nullopt;
  return fmt::format("layers.{}.{}", rest.substr(0, dot), found->second);
}

/// Puts every weight that has a place into params; `prefix` stands before all names in some files ("bert.").
/// Others are left alone: heads that an encoder was trained with.
void load_weights(const Checkpoint& checkpoint, const Names& names, Params& params,
                  std::string_view prefix = "") {
  for (const auto& name : checkpoint.names()) {
    std::string_view bare = name;
    if (!prefix.empty() && bare.starts_with(prefix)) bare.remove_prefix(prefix.size());
    if (const auto ours = our_name(names, bare))
      params.set(*ours, parameter_from(checkpoint.tensor(name)));
  }
}

/// In a decoder every weight takes part: one without a place (a bias, a table of scaled rotary frequencies) is of a variant
/// that would compute something else.
void check_all_placed(const Checkpoint& checkpoint, const Names& names) {
  for (const auto& name : checkpoint.names()) {
    if (our_name(names, name) || name.ends_with("rotary_emb.inv_freq")) continue;
    throw Error(Errc::unsupported, fmt::format("{}: the weight '{}' has no place in the llama "
                                               "architecture: this variant is not supported",
                                               checkpoint.path().string(), name));
  }
}

/// A configuration value, with the file and the key in the error.
template <class T>
T value(const json& config, const std::string& key, const Checkpoint& checkpoint,
        std::optional<T> otherwise = std::nullopt) {
  const auto found = config.find(key);
  if (found == config.end() || found->is_null()) {
    if (otherwise) return *otherwise;
    throw Error(Errc::corrupt,
                fmt::format("{}: the configuration has no '{}'", checkpoint.path().string(), key));
  }
  try {
    return found->get<T>();
  } catch (const json::exception&) {
    throw Error(Errc::corrupt, fmt::format("{}: the configuration's '{}' has the wrong type",
                                           checkpoint.path().string(), key));
  }
}

std::int64_t count(const json& config, const std::string& key, const Checkpoint& checkpoint,
                   std::optional<std::int64_t> otherwise = std::nullopt) {
  const auto n = value<std::int64_t>(config, key, checkpoint, otherwise);
  if (n < 1 || n > (std::int64_t{1} << 32))
    throw Error(Errc::corrupt, fmt::format("{}: the configuration's '{}' is {}",
                                           checkpoint.path().string(), key, n));
  return n;
}

Value word(const char* text) { return {Stage{text, {}}}; }

struct LlamaSizes {
  std::int64_t vocabulary, model, layers, context, heads, kv_heads, head, hidden;
  double eps, theta;
  bool tied;
  const char* rope_pairs;
  std::string activation = "silu";
};

Stage llama_spec(const LlamaSizes& s) {
  Stage mixer{"softmax",
              {{"heads", {s.heads}},
               {"kv_heads", {s.kv_heads}},
               {"head", {s.head}},
               {"rope_theta", {s.theta}},
               {"rope_pairs", word(s.rope_pairs)}}};
  Stage feed_forward{"glu", {{"hidden", {s.hidden}}, {"activation", word(s.activation.c_str())}}};
  return {"decoder",
          {{"vocabulary", {s.vocabulary}},
           {"model", {s.model}},
           {"layers", {s.layers}},
           {"context", {s.context}},
           {"norm_eps", {s.eps}},
           {"tied", word(s.tied ? "true" : "false")},
           {"mixer", {std::move(mixer)}},
           {"feed_forward", {std::move(feed_forward)}}}};
}

Architecture gguf_llama(const Checkpoint& checkpoint, Params& params) {
  const auto& m = checkpoint.metadata();
  if (m.contains("llama.rope.scaling.type") && m["llama.rope.scaling.type"] != "none") {
    throw Error(Errc::unsupported, fmt::format("{}: scaled rotary positions are not supported",
                                               checkpoint.path().string()));
  }
  LlamaSizes s{};
  s.model = count(m, "llama.embedding_length", checkpoint);
  s.layers = count(m, "llama.block_count", checkpoint);
  s.context = count(m, "llama.context_length", checkpoint);
  s.heads = count(m, "llama.attention.head_count", checkpoint);
  s.kv_heads = count(m, "llama.attention.head_count_kv", checkpoint, s.heads);
  s.head = count(m, "llama.attention.key_length", checkpoint, s.model / s.heads);
  s.hidden = count(m, "llama.feed_forward_length", checkpoint);
  s.eps = value<double>(m, "llama.attention.layer_norm_rms_epsilon", checkpoint);
  s.theta = value<double>(m, "llama.rope.freq_base", checkpoint, 10000.0);
  s.rope_pairs = "adjacent";
  check_all_placed(checkpoint, gguf_llama_names());
  load_weights(checkpoint, gguf_llama_names(), params);
  const auto& embedding = checkpoint.tensor("token_embd.weight").shape;
  if (embedding.size() != 2) {
    throw Error(Errc::corrupt,
                fmt::format("{}: 'token_embd.weight' has {} dimensions where 2 are wanted",
                            checkpoint.path().string(), embedding.size()));
  }
  s.vocabulary = embedding.front();
  s.tied = !params.has("head.weight");
  return {"llama", llama_spec(s)};
}

Architecture huggingface_llama(const Checkpoint& checkpoint, const json& config, Params& params) {
  LlamaSizes s{};
  s.model = count(config, "hidden_size", checkpoint);
  s.layers = count(config, "num_hidden_layers", checkpoint);
  s.context = count(config, "max_position_embeddings", checkpoint);
  s.heads = count(config, "num_attention_heads", checkpoint);
  s.kv_heads = count(config, "num_key_value_heads", checkpoint, s.heads);
  s.head = count(config, "head_dim", checkpoint, s.model / s.heads);
  s.hidden = count(config, "intermediate_size", checkpoint);
  s.vocabulary = count(config, "vocab_size", checkpoint);
  s.eps = value<double>(config, "rms_norm_eps", checkpoint, 1e-6);
  const auto rope = config.contains("rope_parameters") && config["rope_parameters"].is_object()
                        ? config["rope_parameters"]
                        : json::object();
  s.theta = value<double>(rope, "rope_theta", checkpoint,
                          value<double>(config, "rope_theta", checkpoint, 10000.0));
  const auto scaling = config.contains("rope_scaling") && config["rope_scaling"].is_object()
                           ? config["rope_scaling"]
                           : rope;
  const auto type = value<std::string>(scaling, "rope_type", checkpoint,
                                       value<std::string>(scaling, "type", checkpoint, "default"));
  if (type != "default")
    throw Error(Errc::unsupported,
                fmt::format("{}: rotary positions of type '{}' are not supported",
                            checkpoint.path().string(), type));
  for (const auto* key : {"attention_bias", "mlp_bias"}) {
    if (value<bool>(config, key, checkpoint, false))
      throw Error(Errc::unsupported,
                  fmt::format("{}: '{}' is not supported", checkpoint.path().string(), key));
  }
  s.activation = value<std::string>(config, "hidden_act", checkpoint, "silu");
  if (s.activation == "swish") s.activation = "silu";
  s.rope_pairs = "halves";
  check_all_placed(checkpoint, huggingface_llama_names());
  load_weights(checkpoint, huggingface_llama_names(), params);
  s.tied =
      value<bool>(config, "tie_word_embeddings", checkpoint, false) || !params.has("head.weight");
  return {"llama", llama_spec(s)};
}

Architecture huggingface_bert(const Checkpoint& checkpoint, const json& config, Params& params) {
  const auto position_type =
      value<std::string>(config, "position_embedding_type", checkpoint, "absolute");
  if (position_type != "absolute")
    throw Error(Errc::unsupported, fmt::format("{}: '{}' positions are not supported",
                                               checkpoint.path().string(), position_type));
  auto activation = value<std::string>(config, "hidden_act", checkpoint, "gelu");
  if (activation == "gelu_new" || activation == "gelu_pytorch_tanh") activation = "gelu_tanh";
  Stage mixer{"softmax",
              {{"heads", {count(config, "num_attention_heads", checkpoint)}},
               {"rope_theta", {std::int64_t{0}}},
               {"bias", word("true")}}};
  Stage feed_forward{"mlp",
                     {{"hidden", {count(config, "intermediate_size", checkpoint)}},
                      {"activation", word(activation.c_str())}}};
  load_weights(checkpoint, huggingface_bert_names(), params, "bert.");
  return {"bert", Stage{"encoder",
                        {{"vocabulary", {count(config, "vocab_size", checkpoint)}},
                         {"model", {count(config, "hidden_size", checkpoint)}},
                         {"layers", {count(config, "num_hidden_layers", checkpoint)}},
                         {"context", {count(config, "max_position_embeddings", checkpoint)}},
                         {"types", {count(config, "type_vocab_size", checkpoint, 2)}},
                         {"norm_eps", {value<double>(config, "layer_norm_eps", checkpoint, 1e-12)}},
                         {"mixer", {std::move(mixer)}},
                         {"feed_forward", {std::move(feed_forward)}}}}};
}

}  // namespace

Architecture load_architecture(const Checkpoint& checkpoint, Params& params) {
  const auto& metadata = checkpoint.metadata();
  if (checkpoint.format() == "gguf") {
    const auto name = value<std::string>(metadata, "general.architecture", checkpoint);
    if (name == "llama") return gguf_llama(checkpoint, params);
    throw Error(Errc::unsupported,
                fmt::format("{}: the architecture '{}' is not supported in GGUF files: llama is",
                            checkpoint.path().string(), name));
  }
  if (checkpoint.format() == "huggingface") {
    const auto& config = metadata.at("config");
    const auto name = value<std::string>(config, "model_type", checkpoint);
    if (name == "llama") return huggingface_llama(checkpoint, config, params);
    if (name == "bert") return huggingface_bert(checkpoint, config, params);
    throw Error(Errc::unsupported,
                fmt::format("{}: the architecture '{}' is not supported: llama and bert are",
                            checkpoint.path().string(), name));
  }
  throw Error(Errc::unsupported,
              fmt::format("{}: a bare safetensors file says nothing of its architecture: give the "
                          "directory with its config.json",
                          checkpoint.path().string()));
}

std::unique_ptr<Model> build_model(const Checkpoint& checkpoint, const Architecture& architecture,
                                   Params& params) {
  const auto loaded = params.names();  // sorted
  auto model = registry().make<Model>(architecture.spec, params);
  // A model makes a weight that is not there, at random: right for one to train, never for one that was loaded.
  for (const auto& name : params.names()) {
    if (std::binary_search(loaded.begin(), loaded.end(), name) ||
        !params.find(name)->tied_to.empty())
      continue;
    throw Error(Errc::corrupt,
                fmt::format("{}: the weight '{}' of the {} architecture is missing, or has a name "
                            "that is not known",
                            checkpoint.path().string(), name, architecture.name));
  }
  return model;
}

}  // namespace mneme
