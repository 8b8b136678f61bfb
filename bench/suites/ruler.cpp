// ruler: recall, tracing and counting in generated texts, tasks as those of RULER.
//
//   every task of `tasks` at every length of `lengths`; the score is the mean over tasks and lengths, once by ranking the
//   right answer among wrong ones and once by the scorer of the task on what was said
//
// spec      ruler(tasks="niah; variable_tracking; common_words; frequent_words", lengths="1024,2048,4096")
// source    Hsieh et al. 2024, arXiv:2404.06654 (the tasks and their scorers)
// departs   ranking is ours: a small model knows more than it can say
#include "mneme/core/registry.h"

#include "bench/kv/recall.h"
#include "bench/kv/rows.h"
#include "bench/suite.h"

namespace mneme::suites::ruler {

using namespace mneme::bench;

class Ruler final : public Suite {
 public:
  struct Options : RecallOptions {
    Options() { tasks = "niah; variable_tracking; common_words; frequent_words"; }
  };
  static void describe(Describe& d, Options& o) { describe_recall(d, o); }
  explicit Ruler(const Options& o) : o_(o) {}

  [[nodiscard]] std::vector<std::string> examples() const override {
    return {"mneme bench ruler --kv 'quantize(bits=4)' --lengths 1024 --samples 5"};
  }

  SuiteReport run(const SuiteSetup& setup) override {
    return run_recall_suite(setup, o_, "ruler", options_json<Ruler>(o_));
  }

 private:
  Options o_;
};

void enrol(Registry& r) {
  r.add<Suite, Ruler>("ruler", "recall, tracing and counting in long texts");
}

}  // namespace mneme::suites::ruler
