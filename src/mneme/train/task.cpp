#include "mneme/train/task.h"

namespace mneme {

std::map<std::string, double> Task::validate(const LanguageModel&, std::int64_t) const {
  return {};
}

std::string Task::digest() const { return {}; }

std::map<std::string, std::string> Task::notes() const { return {}; }

}  // namespace mneme
