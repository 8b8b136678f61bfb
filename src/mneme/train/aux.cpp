// aux: a loss that the layers themselves name, such as the load balance of a mixture of experts.
//
//   loss = Output.aux[name], summed over the layers
//
// spec      aux(name=load_balance)
// needs     layers that give a loss of that name
#include "mneme/core/nearest.h"
#include "mneme/core/registry.h"
#include "mneme/train/objective.h"

#include <fmt/format.h>
#include <vector>

namespace mneme::train::aux {

class Aux final : public Objective {
 public:
  struct Options {
    std::string name;
  };
  static void describe(Describe& d, Options& o) { d("name", o.name, "which loss"); }
  explicit Aux(const Options& o) : o_(o) {
    if (o.name.empty()) throw Error(Errc::usage, "aux: 'name' is missing: which loss is meant?");
  }

  [[nodiscard]] at::Tensor loss(const ObjectiveInput& input) const override {
    if (const auto found = input.aux.find(o_.name); found != input.aux.end()) return found->second;
    std::vector<std::string> names;
    for (const auto& [name, ignored] : input.aux) names.push_back(name);
    throw Error(Errc::invalid, fmt::format("aux: no layer gives a loss '{}'{}", o_.name,
                                           did_you_mean(o_.name, names)));
  }

 private:
  Options o_;
};

void enrol(Registry& r) { r.add<Objective, Aux>("aux", "a loss that layers name"); }

}  // namespace mneme::train::aux
