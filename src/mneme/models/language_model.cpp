#include "mneme/models/language_model.h"

#include "mneme/core/error.h"
#include "mneme/models/architecture.h"
#include "mneme/models/locate.h"
#include "mneme/weights/checkpoint.h"

#include <ATen/ATen.h>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace mneme {
namespace {

std::optional<ChatTemplate> chat_template(const nlohmann::json& metadata) {
  const auto recognise = [](const nlohmann::json& from,
                            const char* key) -> std::optional<ChatTemplate> {
    const auto found = from.find(key);
    if (found == from.end() || !found->is_string()) return std::nullopt;
    try {
      return ChatTemplate::recognise(found->get<std::string>());
    } catch (const Error&) {  // chatting says so; everything else works without a template
      return std::nullopt;
    }
  };
  if (metadata.contains("tokenizer_config"))
    return recognise(metadata["tokenizer_config"], "chat_template");
  return recognise(metadata, "tokenizer.chat_template");
}

}  // namespace

std::unique_ptr<LanguageModel> load_language_model(const std::string& name_or_path,
                                                   const LoadOptions& options) {
  const auto located = locate_model(name_or_path);
  const auto checkpoint = open_checkpoint(located.path);
  auto out = std::make_unique<LanguageModel>();
  out->name = located.name;
  out->path = located.path.string();
  out->compute = options.compute;
  auto architecture = load_architecture(*checkpoint, out->params);
  if (architecture.spec.name != "decoder") {
    throw Error(Errc::mismatch,
                fmt::format("{} is a {} encoder: it embeds text and cannot generate it",
                            located.path.string(), architecture.name));
  }
  out->model = build_model(*checkpoint, architecture, out->params);
  out->architecture = std::move(architecture.name);
  out->tokenizer = checkpoint->format() == "gguf" ? tokenizer_from_gguf(checkpoint->metadata())
                                                  : tokenizer_from_directory(located.path);
  out->chat = chat_template(checkpoint->metadata());
  out->digest = checkpoint->digest();
  if (!options.adapter.empty() && options.adapter != kNoAdapter)
    out->adapter = load_adapter(locate_adapter(options.adapter), *out);
  return out;
}

Output LanguageModel::run(const std::vector<std::int32_t>& ids, State& state, LogitsAt at) const {
  Batch batch;
  batch.ids = at::empty({1, static_cast<std::int64_t>(ids.size())}, at::kLong);
  std::copy(ids.begin(), ids.end(), batch.ids.mutable_data_ptr<std::int64_t>());
  batch.logits_at = at;
  batch.compute = compute;
  return model->forward(batch, state);
}

}  // namespace mneme
