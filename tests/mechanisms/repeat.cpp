// repeat: a training task that only the tests know; words, a mark, and the words once more.
//
//   1 w_1 ... w_n 2 w_1 ... w_n        n: 2 ... longest; learned is what follows the mark
//
// spec      repeat(examples=24, words=20, longest=6)
#include "mneme/core/registry.h"
#include "mneme/train/packing.h"
#include "mneme/train/task.h"

#include <ATen/ATen.h>

namespace mneme::mechanisms::repeat {

class Repeat final : public Task {
 public:
  struct Options {
    std::int64_t examples = 24, words = 20, longest = 6;
  };
  static void describe(Describe& d, Options& o) {
    d("examples", o.examples, at_least(1), "examples in a pass");
    d("words", o.words, at_least(1), "different words");
    d("longest", o.longest, at_least(2), "most words in an example");
  }
  Repeat(const Options& o, const Setup&) : o_(o) {}

  [[nodiscard]] std::int64_t size() const override { return o_.examples; }

  [[nodiscard]] Example example(std::int64_t, std::int64_t, Generator& generator) const override {
    const auto n = 2 + static_cast<std::int64_t>(generator.next()) % (o_.longest - 1);
    Example out;
    std::vector<std::int32_t> words;
    for (std::int64_t i = 0; i < n; ++i) {
      words.push_back(3 + static_cast<std::int32_t>(generator.next() % o_.words));
    }
    out.ids = {1};
    out.ids.insert(out.ids.end(), words.begin(), words.end());
    out.ids.push_back(2);
    out.ids.insert(out.ids.end(), words.begin(), words.end());
    out.weights.assign(out.ids.size(), 0);
    for (std::int64_t i = n + 1; i < 2 * n + 1; ++i) out.weights[static_cast<std::size_t>(i)] = 1;
    return out;
  }

  /// How many of the words behind the mark get the highest logit.
  [[nodiscard]] std::map<std::string, double> validate(const LanguageModel& model,
                                                       std::int64_t limit) const override {
    Generator generator(99);
    std::vector<Example> examples;
    for (std::int64_t i = 0; i < (limit == 0 ? 10 : limit); ++i) {
      examples.push_back(example(i, 0, generator));
    }
    std::vector<const Example*> all;
    for (const auto& one : examples) all.push_back(&one);
    const auto packed = pack(all, 0);
    auto state = model.model->start(packed.batch.ids.size(0));
    const auto logits = model.model->forward(packed.batch, state).logits;
    const auto right = logits.argmax(-1).eq(packed.targets).to(at::kDouble).mean();
    return {{"accuracy", right.item<double>()}};
  }

  [[nodiscard]] std::map<std::string, std::string> notes() const override {
    return {{"prompt", "{\"mark\": 2}"}};
  }

 private:
  Options o_;
};

void enrol(Registry& r) { r.add<Task, Repeat>("repeat", "words once more, for the tests"); }

}  // namespace mneme::mechanisms::repeat
