// What State promises, on the default model's real weights.
#include "../smollm2.h"

#include "mneme/kv/plan.h"
#include "mneme/models/locate.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include "../tensor_check.h"
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <iterator>
#include <spawn.h>
#include <sstream>
#include <sys/wait.h>
#include <unistd.h>

namespace mneme {
namespace {

class SmolLM2Test : public ::testing::Test {
 protected:
  void SetUp() override {
    MNEME_NEEDS_SMOLLM2();
    ids_ = check::smollm2()->tokenizer->encode(check::kProse);
    ASSERT_GT(ids_.size(), 140u);
  }
  /// ids [begin, end) of the text.
  [[nodiscard]] std::vector<std::int32_t> ids(std::size_t begin, std::size_t end) const {
    return {ids_.begin() + static_cast<std::ptrdiff_t>(begin),
            ids_.begin() + static_cast<std::ptrdiff_t>(end)};
  }
  /// Logits of ids [begin, end), in pieces.
  [[nodiscard]] at::Tensor run(const LanguageModel& model, State& state, std::size_t begin,
                               std::size_t end, std::size_t piece = 1000) const {
    std::vector<at::Tensor> out;
    for (; begin < end; begin += piece)
      out.push_back(
          model.run(ids(begin, std::min(end, begin + piece)), state, LogitsAt::all).logits[0]);
    return at::cat(out);
  }
  static std::vector<std::int32_t> greedy(const LanguageModel& model, State& state,
                                          std::int32_t first, int n) {
    std::vector<std::int32_t> out{first};
    while (static_cast<int>(out.size()) < n) {
      out.push_back(static_cast<std::int32_t>(
          model.run({out.back()}, state).logits[0].argmax().item<std::int64_t>()));
    }
    return out;
  }
  /// Mean Kullback-Leibler divergence of the distributions of rows.
  static double kl(const at::Tensor& want, const at::Tensor& got) {
    const auto p = at::log_softmax(want, -1), q = at::log_softmax(got, -1);
    return (p.exp() * (p - q)).sum(-1).mean().item<double>();
  }
  const c10::InferenceMode inference_;
  std::vector<std::int32_t> ids_;
};

TEST_F(SmolLM2Test, AnyChunkingGivesTheSameLogits) {
  const auto& model = *check::smollm2(Compute::f32);
  auto state = model.model->start(1);
  const auto whole = run(model, state, 0, 120);
  for (const std::size_t piece : {1u, 50u, 119u}) {
    auto other = model.model->start(1);
    // Step by step for the last few only: every step unpacks all weights in this compute type.
    const auto logits = piece == 1
                            ? at::cat({run(model, other, 0, 115), run(model, other, 115, 120, 1)})
                            : run(model, other, 0, 120, piece);
    EXPECT_LE(check::largest_difference(logits, whole), 1e-4) << "pieces of " << piece;
  }
}

TEST_F(SmolLM2Test, TheFastPathStaysNearForAnyChunking) {
  const auto& model = *check::smollm2();
  auto exact_state = check::smollm2(Compute::f32)->model->start(1);
  const auto exact = run(*check::smollm2(Compute::f32), exact_state, 0, 120);
  for (const std::size_t piece : {1u, 7u, 64u, 120u}) {
    auto state = model.model->start(1);
    EXPECT_LE(kl(exact, run(model, state, 0, 120, piece)), 0.01) << "pieces of " << piece;
  }
}

TEST_F(SmolLM2Test, SavedItGoesOnInAnotherProcess) {
  const auto& model = *check::smollm2();
  for (const auto* plan : {"", "window(sinks=4, size=48) | quantize"}) {
    auto state = model.model->start(1);
    if (*plan) use_plan(state, std::make_shared<KvPlan>(parse_chain(plan)));
    const auto first =
        static_cast<std::int32_t>(run(model, state, 0, 100, 60)[-1].argmax().item<std::int64_t>());
    auto pattern = (std::filesystem::temp_directory_path() / "mneme-state-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    const std::filesystem::path folder = pattern;
    std::ofstream(folder / "state", std::ios::binary) << state.save();
    std::ofstream(folder / "first") << first;
    ASSERT_EQ(::setenv("MNEME_TEST_STATE", folder.c_str(), 1), 0);
    std::string program = std::filesystem::read_symlink("/proc/self/exe").string();
    std::string filter = "--gtest_filter=SmolLM2Test.DISABLED_TheOtherProcess",
                disabled = "--gtest_also_run_disabled_tests";
    char* arguments[] = {program.data(), filter.data(), disabled.data(), nullptr};
    pid_t child = 0;
    ASSERT_EQ(::posix_spawn(&child, program.c_str(), nullptr, nullptr, arguments, environ), 0);
    int status = -1;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ::unsetenv("MNEME_TEST_STATE");
    EXPECT_EQ(status, 0);
    std::ifstream file(folder / "tokens");
    const std::vector<std::int32_t> theirs{std::istream_iterator<std::int32_t>(file), {}};
    EXPECT_EQ(theirs, greedy(model, state, first, 16)) << plan;
    std::filesystem::remove_all(folder);
  }
}

/// Run by the test above alone, in a process of its own.
TEST_F(SmolLM2Test, DISABLED_TheOtherProcess) {
  const auto* folder = std::getenv("MNEME_TEST_STATE");
  if (!folder) GTEST_SKIP() << "runs only inside SavedItGoesOnInAnotherProcess";
  std::ifstream file(std::filesystem::path(folder) / "state", std::ios::binary);
  auto state = State::load(std::string{std::istreambuf_iterator<char>(file), {}});
  std::int32_t first = 0;
  std::ifstream(std::filesystem::path(folder) / "first") >> first;
  std::ofstream out(std::filesystem::path(folder) / "tokens");
  for (auto id : greedy(*check::smollm2(), state, first, 16)) out << id << ' ';
}

TEST_F(SmolLM2Test, ForksDiverge) {
  const auto& model = *check::smollm2();
  auto parent = model.model->start(1);
  (void)run(model, parent, 0, 70);
  auto child = parent.fork();
  const auto other = model.run(ids(120, 140), child, LogitsAt::all).logits;
  const auto on = run(model, parent, 70, 90);
  auto alone = model.model->start(1), alone_other = model.model->start(1);
  (void)run(model, alone, 0, 70);
  (void)run(model, alone_other, 0, 70);
  EXPECT_TRUE(check::identical(on, run(model, alone, 70, 90)));
  EXPECT_TRUE(check::identical(other, model.run(ids(120, 140), alone_other, LogitsAt::all).logits));
}

TEST_F(SmolLM2Test, RewoundItGoesOnFromThere) {
  const auto& model = *check::smollm2();
  auto state = model.model->start(1), shorter = model.model->start(1);
  (void)run(model, state, 0, 60);
  (void)run(model, shorter, 0, 60);
  (void)model.run(ids(100, 140), state);
  state.rewind(40);
  EXPECT_EQ(state.positions, shorter.positions);
  EXPECT_TRUE(check::identical(run(model, state, 60, 80), run(model, shorter, 60, 80)));
}

TEST_F(SmolLM2Test, ABatchOfDifferentLengthsEqualsEachAlone) {
  const auto& model = *check::smollm2(Compute::f32);
  const std::vector<std::int64_t> lengths{20, 75, 1};
  std::vector<State> alone;
  std::vector<const State*> pointers;
  for (auto n : lengths) {
    alone.push_back(model.model->start(1));
    (void)run(model, alone.back(), 0, static_cast<std::size_t>(n));
  }
  for (const auto& state : alone) pointers.push_back(&state);
  auto joined = State::concat(pointers);
  Batch batch;
  batch.compute = Compute::f32;
  batch.lengths = {9, 4, 12};
  batch.ids = at::zeros({3, 12}, at::kLong);
  for (std::int64_t b = 0; b < 3; ++b) {
    for (std::int64_t t = 0; t < batch.lengths[static_cast<std::size_t>(b)]; ++t)
      batch.ids[b][t] = ids_[static_cast<std::size_t>(80 + 15 * b + t)];
  }
  const auto together = model.model->forward(batch, joined).logits;
  for (std::size_t b = 0; b < 3; ++b) {
    const auto want =
        model
            .run(ids(80 + 15 * b, 80 + 15 * b + static_cast<std::size_t>(batch.lengths[b])),
                 alone[b])
            .logits;
    EXPECT_LE(check::largest_difference(together[static_cast<std::int64_t>(b)], want[0]), 1e-4)
        << "row " << b;
  }
}

TEST_F(SmolLM2Test, KnowsWhatItIs) {
  const auto& model = *check::smollm2();
  EXPECT_EQ(model.architecture, "llama");
  EXPECT_EQ(model.name, "smollm2");
  EXPECT_EQ(model.digest.size(), 64u);
  EXPECT_TRUE(model.chat.has_value());
  const auto& shape = model.model->shape();
  EXPECT_EQ(shape.vocabulary, 49152);
  EXPECT_EQ(shape.layers, 30);
  EXPECT_EQ(shape.model, 576);
  EXPECT_EQ(shape.context, 8192);
  EXPECT_EQ(model.params.count(), 134515008);
  auto state = model.model->start(1);
  const auto next = model.run(model.tokenizer->encode("The capital of France is"), state)
                        .logits[0]
                        .argmax()
                        .item<std::int64_t>();
  EXPECT_EQ(
      model.tokenizer->decode(std::vector<std::int32_t>{static_cast<std::int32_t>(next)}, false),
      " Paris");
}

TEST(LoadLanguageModel, SaysWhatIsWrong) {
  check::expect_error(Errc::not_found, "did you mean 'smollm2'",
                      [] { (void)load_language_model("smolm2"); });
  check::expect_error(Errc::not_found, "smollm2, minilm",
                      [] { (void)load_language_model("/no/such/file.gguf"); });
  bool installed = true;
  try {
    (void)locate_model("minilm");
  } catch (const Error&) {
    installed = false;
  }
  if (installed)
    check::expect_error(Errc::mismatch, "encoder", [] { (void)load_language_model("minilm"); });
}

}  // namespace
}  // namespace mneme
