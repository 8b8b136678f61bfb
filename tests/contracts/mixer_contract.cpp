// What every mixer of the registry must do, in double with gradients possible and in single precision without.
#include "mneme/core/registry.h"
#include "mneme/mixers/kv_store.h"
#include "mneme/mixers/mixer.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "gradcheck.h"
#include <gtest/gtest.h>

namespace mneme {
namespace {

constexpr std::int64_t kModel = 64;

/// Every enrolled mixer at its defaults, and further forms of those that have several.
std::vector<std::string> mixer_specs() {
  auto out = registry().names(Mixer::kKind);
  const std::vector<std::string> more{"softmax(heads=4, kv_heads=2, head=8)",
                                      "softmax(heads=2, head=8, rope_pairs=adjacent)",
                                      "softmax(heads=4, kv_heads=1, window=5)",
                                      "softmax(heads=4, rope_theta=0, bias=true)",
                                      "softmax(heads=3, head=12)",
                                      "decaying_sum(width=5)"};
  out.insert(out.end(), more.begin(), more.end());
  return out;
}

struct Case {
  std::string spec;
  at::ScalarType type;
};

class MixerContract : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    params_.seed(3);
    mixer_ = registry().make<Mixer>(GetParam().spec, Shape{kModel, 0}, params_);
    for (const auto& name : params_.names()) {
      auto& tensor = params_.find(name)->tensor;
      tensor = tensor.to(GetParam().type);
      if (name.ends_with(".bias")) {  // biases start at zero and would hide one left out
        tensor.copy_(0.3 * check::normal(tensor.sizes(), 5, GetParam().type));
      }
    }
  }

  [[nodiscard]] at::Tensor input(std::int64_t B, std::int64_t T, std::uint64_t seed = 1) const {
    return check::normal({B, T, kModel}, seed, GetParam().type);
  }
  [[nodiscard]] State start(std::int64_t B) const {
    return mixer_->start(B, at::TensorOptions().dtype(GetParam().type));
  }
  [[nodiscard]] Call call(std::int64_t B, std::int64_t T, std::int64_t first) const {
    Call out;
    out.positions = check::positions(B, T, first);
    out.compute = Compute::f32;
    return out;
  }
  /// Runs x from position `first` on.
  at::Tensor run(const at::Tensor& x, State& state, std::int64_t first) const {
    auto c = call(x.size(0), x.size(1), first);
    return mixer_->forward(x, state, c);
  }
  [[nodiscard]] double tolerance() const { return check::tolerance(GetParam().type); }
  /// What a state answers to three more tokens: equal for equal states.
  [[nodiscard]] at::Tensor answer(const State& state, std::int64_t first) const {
    auto fork = state.fork();
    return run(input(state.rows(), 3, 77), fork, first);
  }
  /// Numbers that a state of one row holds, in bytes.
  static std::int64_t number_bytes(const State& state) {
    std::int64_t out = 0;
    for (const auto& name : state.names()) {
      const auto is = [&](auto get) {
        try {
          get();
          return true;
        } catch (const Error&) {
          return false;
        }
      };
      if (is([&] { (void)state.tensor(name); })) {
        out += static_cast<std::int64_t>(state.tensor(name).nbytes());
      } else if (is([&] { (void)state.child(name); })) {
        out += number_bytes(state.child(name));
      } else if (const auto* store = dynamic_cast<const KvStore*>(&state.store(name))) {
        const auto slice = store->read(0, 0, store->seen(0));
        out += static_cast<std::int64_t>(slice.keys.nbytes() + slice.values.nbytes());
      } else {
        ADD_FAILURE() << "the contract cannot count the numbers of the store '" << name << "'";
      }
    }
    return out;
  }

  const at::NoGradGuard no_gradient_;
  Params params_;
  std::unique_ptr<Mixer> mixer_;
};

/// Differences want double; bytes are declared in single precision.
class MixerInDouble : public MixerContract {};
class MixerInSingle : public MixerContract {};

TEST_P(MixerContract, CutAnywhereGivesTheSame) {
  for (const std::int64_t T : {2, 7, 131}) {
    const auto x = input(2, T);
    auto whole_state = start(2);
    const auto whole = run(x, whole_state, 0);
    ASSERT_EQ(whole.sizes(), x.sizes());
    for (const auto cut : {std::int64_t{1}, std::int64_t{2}, T / 2, T - 1}) {
      if (cut >= T) continue;
      auto state = start(2);
      const auto head = run(x.narrow(1, 0, cut), state, 0);
      const auto tail = run(x.narrow(1, cut, T - cut), state, cut);
      EXPECT_TRUE(check::close(at::cat({head, tail}, 1), whole, tolerance()))
          << T << " cut at " << cut;
      EXPECT_TRUE(check::close(answer(state, T), answer(whole_state, T), tolerance()))
          << "state, " << T << " cut at " << cut;
    }
  }
}

TEST_P(MixerContract, StepsEqualParallel) {
  const auto x = input(3, 19);
  auto whole_state = start(3), state = start(3);
  const auto whole = run(x, whole_state, 0);
  std::vector<at::Tensor> steps;
  for (std::int64_t t = 0; t < 19; ++t) steps.push_back(run(x.narrow(1, t, 1), state, t));
  EXPECT_TRUE(check::close(at::cat(steps, 1), whole, tolerance()));
  EXPECT_TRUE(check::close(answer(state, 19), answer(whole_state, 19), tolerance()));
}

TEST_P(MixerContract, OnlyThePastIsRead) {
  const auto x = input(1, 70);
  for (const std::int64_t cut : {1, 34, 69}) {
    auto other = x.clone();
    other.narrow(1, cut, 70 - cut).copy_(input(1, 70 - cut, 2) * 100);
    auto a = start(1), b = start(1);
    EXPECT_TRUE(
        check::identical(run(other, a, 0).narrow(1, 0, cut), run(x, b, 0).narrow(1, 0, cut)))
        << "outputs before " << cut << " changed with what comes after";
  }
}

TEST_P(MixerContract, TheInputIsLeftAlone) {
  const auto x = input(2, 9), copy = x.clone();
  auto state = start(2);
  (void)run(x, state, 0);
  EXPECT_TRUE(check::identical(x, copy));
}

TEST_P(MixerContract, RowsDoNotSeeEachOther) {
  const auto x = input(3, 21);
  auto state = start(3);
  const auto together = run(x, state, 0);
  for (std::int64_t b = 0; b < 3; ++b) {
    auto alone = start(1);
    EXPECT_TRUE(
        check::close(run(x.narrow(0, b, 1), alone, 0), together.narrow(0, b, 1), tolerance()));
  }
}

TEST_P(MixerContract, RowsOfDifferentLengthsAreEachAsAlone) {
  const auto x = input(3, 9);
  const std::vector<std::int64_t> lengths{9, 4, 1};
  auto padded = x.clone();
  for (std::int64_t b = 0; b < 3; ++b) {  // what stands behind a row's end must not matter
    padded[b]
        .narrow(0, lengths[static_cast<std::size_t>(b)], 9 - lengths[static_cast<std::size_t>(b)])
        .fill_(1e3);
  }
  auto state = start(3);
  auto c = call(3, 9, 0);
  c.lengths = lengths;
  const auto out = mixer_->forward(padded, state, c);
  Call more = call(3, 2, 0);
  for (std::int64_t b = 0; b < 3; ++b) {
    for (std::int64_t t = 0; t < 2; ++t)
      more.positions[b][t] = lengths[static_cast<std::size_t>(b)] + t;
  }
  const auto y = input(3, 2, 8);
  const auto next = mixer_->forward(y, state, more);
  for (std::int64_t b = 0; b < 3; ++b) {
    const auto n = lengths[static_cast<std::size_t>(b)];
    auto alone = start(1);
    EXPECT_TRUE(check::close(out.narrow(0, b, 1).narrow(1, 0, n),
                             run(x.narrow(0, b, 1).narrow(1, 0, n), alone, 0), tolerance()))
        << "row " << b;
    EXPECT_TRUE(check::close(next.narrow(0, b, 1), run(y.narrow(0, b, 1), alone, n), tolerance()))
        << "row " << b << ", continued";
  }
}

TEST_P(MixerInDouble, Gradients) {
  const auto x = input(2, 6);
  check::Leaves leaves{{"x", x}};
  for (const auto& name : params_.names()) leaves.emplace_back(name, params_.find(name)->tensor);
  // In two pieces, so that gradients flow back through the State.
  EXPECT_TRUE(check::gradients_match(
      [&] {
        auto state = start(2);
        auto first = call(2, 4, 0), second = call(2, 2, 4);
        first.mode = second.mode = Mode::train;
        const auto head = mixer_->forward(x.narrow(1, 0, 4), state, first);
        return at::cat({head, mixer_->forward(x.narrow(1, 4, 2), state, second)}, 1);
      },
      leaves));
}

TEST_P(MixerInSingle, StateBytesAreAsDeclared) {
  for (const std::int64_t T : {1, 13, 70}) {
    auto state = start(1);
    (void)run(input(1, T), state, 0);
    EXPECT_EQ(number_bytes(state), mixer_->state_bytes(T)) << "after " << T << " tokens";
    EXPECT_EQ(state.bytes(), static_cast<std::int64_t>(state.save().size()));
  }
}

TEST_P(MixerContract, SavedAndLoadedItGoesOnTheSame) {
  auto state = start(2);
  (void)run(input(2, 70), state, 0);
  const auto bytes = state.save();
  const auto loaded = State::load(bytes);
  EXPECT_TRUE(check::identical(answer(loaded, 70), answer(state, 70)));
  EXPECT_EQ(loaded.save(), bytes);
}

TEST_P(MixerContract, AForkLeavesItsParentAlone) {
  auto parent = start(2);
  (void)run(input(2, 67), parent, 0);
  const auto bytes = parent.save();
  const auto before = answer(parent, 67);
  auto child = parent.fork();
  EXPECT_TRUE(check::identical(answer(child, 67), before));
  (void)run(input(2, 5, 4) * 10, child, 67);
  EXPECT_EQ(parent.save(), bytes);
  EXPECT_TRUE(check::identical(answer(parent, 67), before));
  // And the other way round: the parent moves on, the child stays.
  const auto kept = answer(child, 72);
  (void)run(input(2, 5, 6), parent, 67);
  EXPECT_TRUE(check::identical(answer(child, 72), kept));
}

TEST_P(MixerContract, RewindsOrSaysThatItCannot) {
  const auto x = input(2, 70);
  auto state = start(2), short_state = start(2);
  (void)run(x, state, 0);
  (void)run(x.narrow(1, 0, 63), short_state, 0);
  const auto bytes = state.save();
  try {
    state.rewind(7);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::unsupported) << error.what();
    EXPECT_EQ(state.save(), bytes) << "a refusal changes nothing";
    return;
  }
  EXPECT_TRUE(check::close(answer(state, 63), answer(short_state, 63), tolerance()));
}

TEST_P(MixerContract, RowsAreSelectedAndJoined) {
  const auto x = input(2, 12);
  auto both = start(2), first = start(1), second = start(1);
  (void)run(x, both, 0);
  (void)run(x.narrow(0, 0, 1), first, 0);
  (void)run(x.narrow(0, 1, 1).narrow(1, 0, 5), second, 0);  // another length
  const auto picked = both.select({1, 0, 1});
  const auto three = answer(picked, 12);
  for (std::int64_t i = 0; i < 3; ++i) {
    auto alone = both.select({i == 1 ? 0 : 1});
    auto token = input(3, 3, 77).narrow(0, i, 1);
    EXPECT_TRUE(check::close(run(token, alone, 12), three.narrow(0, i, 1), tolerance()));
  }
  auto joined = State::concat({&first, &second});
  ASSERT_EQ(joined.rows(), 2);
  const auto y = input(2, 3, 9);
  Call c = call(2, 3, 12);
  c.positions[1].sub_(7);
  const auto out = mixer_->forward(y, joined, c);
  EXPECT_TRUE(check::close(out.narrow(0, 0, 1), run(y.narrow(0, 0, 1), first, 12), tolerance()));
  EXPECT_TRUE(check::close(out.narrow(0, 1, 1), run(y.narrow(0, 1, 1), second, 5), tolerance()));
}

TEST_P(MixerContract, ResetRowsStartOver) {
  const auto x = input(2, 11), y = input(2, 4, 9);
  auto state = start(2), fresh = start(2);
  (void)run(x, state, 0);
  const auto other = state.select({0});
  state.reset({false, true});
  auto alone = other.fork();
  Call c = call(2, 4, 11);
  c.positions[1].sub_(11);
  const auto out = mixer_->forward(y, state, c);
  EXPECT_TRUE(check::close(out.narrow(0, 0, 1), run(y.narrow(0, 0, 1), alone, 11), tolerance()));
  EXPECT_TRUE(check::close(out.narrow(0, 1, 1), run(y, fresh, 0).narrow(0, 1, 1), tolerance()));
}

TEST_P(MixerContract, ReadOnlyLeavesTheState) {
  auto state = start(2);
  (void)run(input(2, 9), state, 0);
  const auto bytes = state.save();
  auto reading = call(2, 4, 9);
  reading.mode = Mode::read_only;
  const auto y = input(2, 4, 9);
  const auto out = mixer_->forward(y, state, reading);
  EXPECT_EQ(state.save(), bytes);
  EXPECT_TRUE(check::close(out, run(y, state, 9), tolerance())) << "and answers the same";
}

TEST_P(MixerContract, ATreeIsScoredPathByPath) {
  //  0 - 1 - 3
  //    \ 2 - 4
  const std::vector<std::int64_t> parent{-1, 0, 0, 1, 2};
  const auto tree = input(1, 5, 9);
  auto state = start(1);
  (void)run(input(1, 10), state, 0);
  const auto bytes = state.save();
  auto c = call(1, 5, 10);
  const auto out = mixer_->verify(tree, parent, state, c);
  EXPECT_EQ(state.save(), bytes) << "verifying changes nothing";
  for (const auto& path :
       {std::vector<std::int64_t>{0, 1, 3}, std::vector<std::int64_t>{0, 2, 4}}) {
    auto alone = state.fork();
    const auto index = at::tensor(path, at::kLong);
    const auto want = run(tree.index_select(1, index), alone, 10);
    EXPECT_TRUE(check::close(out.index_select(1, index), want, tolerance()));
    auto committed = state.fork();
    mixer_->commit(tree, path, committed, c);
    EXPECT_TRUE(check::close(answer(committed, 13), answer(alone, 13), tolerance()));
  }
  check::expect_error(Errc::invalid, "parents",
                      [&] { (void)mixer_->verify(tree, {-1}, state, c); });
  check::expect_error(Errc::invalid, "before",
                      [&] { (void)mixer_->verify(tree, {-1, 0, 2, 1, 2}, state, c); });
}

TEST_P(MixerContract, ItsSpecPrintsAndParsesBack) {
  const auto stage = parse_stage(GetParam().spec);
  const auto& component = registry().find(Mixer::kKind, stage.name);
  const auto canonical = component.canonicalize(stage);
  const auto text = print(canonical);
  EXPECT_EQ(print(component.canonicalize(parse_stage(text))), text);
  Params params;
  params.seed(3);
  const auto again = registry().make<Mixer>(text, Shape{kModel, 0}, params);
  for (const auto& name : params.names()) params.find(name)->tensor = params_.find(name)->tensor;
  const auto x = input(1, 5);
  auto a = start(1), b = start(1);
  auto c = call(1, 5, 0);
  EXPECT_TRUE(check::identical(again->forward(x, a, c), run(x, b, 0)));
}

std::vector<Case> cases(const std::vector<at::ScalarType>& types) {
  std::vector<Case> out;
  for (const auto& spec : mixer_specs()) {
    for (const auto type : types) out.push_back({spec, type});
  }
  return out;
}

std::string case_name(const ::testing::TestParamInfo<Case>& info) {
  return check::test_name(info.param.spec) + (info.param.type == at::kDouble ? "_f64" : "_f32");
}

INSTANTIATE_TEST_SUITE_P(EveryMixer, MixerContract,
                         ::testing::ValuesIn(cases({at::kDouble, at::kFloat})), case_name);
INSTANTIATE_TEST_SUITE_P(EveryMixer, MixerInDouble, ::testing::ValuesIn(cases({at::kDouble})),
                         case_name);
INSTANTIATE_TEST_SUITE_P(EveryMixer, MixerInSingle, ::testing::ValuesIn(cases({at::kFloat})),
                         case_name);

}  // namespace
}  // namespace mneme
