#include "mneme/decode/stop.h"

#include "mneme/core/error.h"

#include <algorithm>
#include <utility>

namespace mneme {
namespace {

/// The length of the longest end of `text` that begins `stop` without being all of it.
std::size_t beginning_at_end(std::string_view text, std::string_view stop) {
  for (auto n = std::min(text.size(), stop.size() - 1); n > 0; --n) {
    if (stop.starts_with(text.substr(text.size() - n))) return n;
  }
  return 0;
}

}  // namespace

StopStrings::StopStrings(std::vector<std::string> stops) : stops_(std::move(stops)) {
  for (const auto& stop : stops_) {
    if (stop.empty())
      throw Error(Errc::usage, "a stop string is empty: it would stop before anything is said");
  }
}

std::string StopStrings::push(std::string_view piece) {
  if (stopped_) return {};
  held_ += piece;
  std::size_t begin = 0, end = std::string::npos;
  for (const auto& stop : stops_) {
    const auto found = held_.find(stop);
    if (found == std::string::npos) continue;
    if (found + stop.size() < end || (found + stop.size() == end && found < begin)) {
      begin = found;
      end = found + stop.size();
    }
  }
  stopped_ = end != std::string::npos;
  std::size_t hold = 0;
  if (stopped_) {
    held_.resize(begin);
  } else {
    for (const auto& stop : stops_) hold = std::max(hold, beginning_at_end(held_, stop));
  }
  auto shown = held_.substr(0, held_.size() - hold);
  held_.erase(0, shown.size());
  return shown;
}

std::string StopStrings::finish() { return std::exchange(held_, {}); }

}  // namespace mneme
