// babilong: questions on stories whose sentences stand far apart in a long text, tasks as those of BABILong.
//
//   every task of `tasks` at every length of `lengths`; the score is the mean over tasks and lengths, once by ranking the
//   right answer among wrong ones and once by the scorer of the task on what was said
//
// spec      babilong(tasks="babilong(task=qa1); babilong(task=qa2)", lengths="1024,2048,4096")
// source    Kuratov et al. 2024, arXiv:2406.10149 (the tasks and their scorer)
// departs   ranking is ours: a small model knows more than it can say
#include "mneme/core/registry.h"

#include "bench/kv/recall.h"
#include "bench/kv/rows.h"
#include "bench/suite.h"

namespace mneme::suites::babilong {

using namespace mneme::bench;

class Babilong final : public Suite {
 public:
  struct Options : RecallOptions {
    Options() {
      tasks =
          "babilong(task=qa1); babilong(task=qa2); babilong(task=qa3); babilong(task=qa4); "
          "babilong(task=qa5)";
    }
  };
  static void describe(Describe& d, Options& o) { describe_recall(d, o); }
  explicit Babilong(const Options& o) : o_(o) {}

  [[nodiscard]] std::vector<std::string> examples() const override {
    return {
        "mneme bench babilong --kv 'quantize(bits=4); window(size=256)' --lengths 1024 --samples "
        "5"};
  }

  SuiteReport run(const SuiteSetup& setup) override {
    return run_recall_suite(setup, o_, "babilong", options_json<Babilong>(o_));
  }

 private:
  Options o_;
};

void enrol(Registry& r) {
  r.add<Suite, Babilong>("babilong", "facts of short stories, far apart in long texts");
}

}  // namespace mneme::suites::babilong
