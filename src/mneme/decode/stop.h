// StopStrings: where generated text ends because of what it says.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace mneme {

/// Watches a text that comes in pieces for the first of several strings. What may yet become one is held back, so that
/// nothing of a stop string is ever shown. How the text is cut into pieces makes no difference.
class StopStrings {
 public:
  /// Throws Error(usage) on an empty string.
  explicit StopStrings(std::vector<std::string> stops);

  /// Takes the next piece; gives the text that can be shown now, perhaps empty. After a stop string everything is dropped.
  std::string push(std::string_view piece);
  /// Whether a stop string has come. The one that is complete first counts, the longest of those that end together.
  [[nodiscard]] bool stopped() const { return stopped_; }
  /// The text has ended: gives what was held back.
  std::string finish();

 private:
  std::vector<std::string> stops_;
  std::string held_;  // shorter than the longest stop string, between calls
  bool stopped_ = false;
};

}  // namespace mneme
