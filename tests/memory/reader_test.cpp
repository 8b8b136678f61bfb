// The reader on the default model: what a prompt that can refuse changes, and which adapter a memory is asked with.
#include "mneme/memory/reader.h"

#include "mneme/core/error.h"
#include "mneme/layers/lora.h"
#include "mneme/memory/memory.h"
#include "mneme/models/adapter_file.h"
#include "mneme/models/locate.h"

#include <ATen/ATen.h>

#include "tests/memory/memory_fixture.h"
#include "tests/smollm2.h"
#include "tests/tensor_check.h"
#include <gtest/gtest.h>

namespace mneme {
namespace {

const std::string kBridge =
    "The bridge at Lorne was opened in 1931 by the mayor Ada Kell. It has four arches of granite.";

std::shared_ptr<const LanguageModel> model() {
  return {std::shared_ptr<const LanguageModel>(), check::smollm2(Compute::f32)};
}

ReadAnswer ask(const Prompt& prompt, const std::string& question) {
  const Reader reader(model(), prompt, Chain{});
  std::vector<State> states;
  states.push_back(reader.prefix());
  reader.run(states.back(), reader.span_ids(kBridge));
  return reader.answer(std::move(states), question, 12).rows.at(0);
}

TEST(Reader, GivesTheBestAnswerThatIsNoRefusalAndItsProbability) {
  MNEME_NEEDS_SMOLLM2();
  auto prompt = Prompt::few_shot_quotes();
  const auto plain = ask(prompt, "Who opened the bridge at Lorne?");
  EXPECT_EQ(plain.refused, 0);
  ASSERT_FALSE(plain.text.empty());
  // A refusal that the model does not think of leaves the answer alone.
  prompt.refusal = "zebra";
  const auto same = ask(prompt, "Who opened the bridge at Lorne?");
  EXPECT_EQ(same.text, plain.text);
  EXPECT_NEAR(same.mean_log_probability, plain.mean_log_probability, 1e-3);
  EXPECT_GT(same.refused, 0);
  EXPECT_LT(same.refused, 0.01);
  // Its own answer taken for the refusal: another one comes, and the probability is that of the first token.
  prompt.refusal = plain.text;
  const auto other = ask(prompt, "Who opened the bridge at Lorne?");
  EXPECT_NE(other.text, plain.text);
  // It was the most likely of 49,152 first tokens to a model that gave the answer with confidence.
  EXPECT_GT(other.refused, 0.2);
  const auto ids = model()->tokenizer->encode(plain.text);
  const auto others = model()->tokenizer->encode(other.text);
  ASSERT_FALSE(others.empty());
  EXPECT_NE(others.front(), ids.front());
}

TEST(Reader, AnAnswerThatBeginsLikeTheRefusalStands) {
  MNEME_NEEDS_SMOLLM2();
  auto prompt = Prompt::few_shot_quotes();
  const auto plain = ask(prompt, "Who opened the bridge at Lorne?");
  const auto first = plain.text.substr(0, plain.text.find(' '));
  ASSERT_LT(first.size(), plain.text.size());
  prompt.refusal = first + " zebra";
  const auto same = ask(prompt, "Who opened the bridge at Lorne?");
  EXPECT_EQ(same.text, plain.text);
  EXPECT_LT(same.refused, 0.01);
}

/// An adapter of the default model that changes what it says, with a prompt of its own.
std::string adapter_in(const check::Folder& folder, const std::string& name) {
  const auto changed = check::own_smollm2(Compute::f32);
  Params adapters;
  adapters.seed(3);
  attach_lora(changed->params, "layers.0.attn.q.weight", adapters, 2, 4);
  auto& b = adapters.find("layers.0.attn.q.weight.lora_b")->tensor;
  b.copy_(0.05 * check::normal(b.sizes(), 11));
  auto prompt = Prompt::few_shot_quotes();
  prompt.prefix = "Short answers.\n\n";
  const auto path = folder / name;
  save_adapter(path, adapters,
               {"smollm2",
                changed->digest,
                "layers.0.attn.q.weight",
                2,
                4,
                "",
                {{"prompt", prompt.to_json()}}});
  return path.string();
}

std::unique_ptr<Memory> open(const check::Folder& folder, const std::string& adapter,
                             bool create = false) {
  MemoryOptions options;
  if (create) options.access = MemoryFile::Access::create;
  return Memory::open(folder / "m.mneme", std::make_shared<MemoryModels>("", "", adapter), options);
}

TEST(MemoryAdapter, IsKeptByTheMemoryAndItsStatesNeverMixWithOthers) {
  MNEME_NEEDS_SMOLLM2();
  const check::Folder folder;
  const auto adapter = adapter_in(folder, "a.safetensors");
  {
    auto memory = open(folder, adapter, true);
    ReadOptions eager;
    eager.eager = true;
    EXPECT_EQ(memory->read({document_from_text("bridge", kBridge)}, eager).states_stored, 1);
    EXPECT_EQ(memory->prompt().prefix, "Short answers.\n\n");
  }
  {  // nothing asked for: the memory's own
    auto memory = open(folder, "");
    EXPECT_EQ(memory->adapter(), adapter);
    EXPECT_TRUE(memory->reader().model().adapter.has_value());
    EXPECT_EQ(memory->ask("Who opened the bridge?", {}).document_tokens_evaluated, 0);
  }
  {  // the base: its own prompt, its own states
    auto memory = open(folder, "none");
    EXPECT_EQ(memory->prompt().prefix, Prompt::few_shot_quotes().prefix);
    EXPECT_FALSE(memory->reader().model().adapter.has_value());
    EXPECT_GT(memory->ask("Who opened the bridge?", {}).document_tokens_evaluated, 0);
    EXPECT_EQ(memory->ask("Who opened the bridge?", {}).document_tokens_evaluated, 0);
  }
  auto memory = open(folder, "");
  EXPECT_EQ(memory->ask("Who opened the bridge?", {}).document_tokens_evaluated, 0);
  EXPECT_TRUE(memory->verify(1).ok());
}

TEST(MemoryAdapter, WritingOnIsTheModelsOwn) {
  MNEME_NEEDS_SMOLLM2();
  const check::Folder with_adapter, without;
  const auto adapter = adapter_in(with_adapter, "a.safetensors");
  const auto continued = [](const check::Folder& folder, const std::string& name) {
    auto memory = open(folder, name, true);
    memory->read({document_from_text("bridge", kBridge)}, {});
    return memory->continue_text(12, {}, 1, "", [](std::string_view) { return true; }).text;
  };
  EXPECT_EQ(continued(with_adapter, adapter), continued(without, "none"));
}

TEST(MemoryAdapter, ThatIsNotThereIsNamedBeforeThereIsAFile) {
  const check::Folder folder;
  check::expect_error(Errc::not_found, "no adapter 'nowhere'",
                      [] { static_cast<void>(locate_adapter("nowhere")); });
  EXPECT_EQ(default_adapter("some other model"), kNoAdapter);
}

TEST(MemoryAdapter, OfAModelGivenByItsPathIsThatOfItsName) {
  MNEME_NEEDS_SMOLLM2();
  const auto model = locate_model("smollm2").path;
  const auto path = model.parent_path() / "." / model.filename();
  EXPECT_TRUE(same_model(path.string(), "smollm2"));
  EXPECT_FALSE(same_model(path.string(), "minilm"));
  EXPECT_FALSE(same_model("nowhere", "smollm2"));
  EXPECT_NE(default_adapter(path.string()), kNoAdapter);
}

}  // namespace
}  // namespace mneme
