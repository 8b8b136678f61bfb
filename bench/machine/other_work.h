// What else a machine does while something is measured on it.
#pragma once

#include <chrono>
#include <vector>

namespace mneme::bench {

/// Processors that something else than this process and some children of it runs on, on average since it was made. The
/// load of the last minute would count what had ended before.
class OtherWork {
 public:
  /// `children`: processes whose work is no other's.
  explicit OtherWork(std::vector<int> children = {});
  /// 0 where the system does not tell. Time is counted in hundredths of a second: exact over about a second.
  [[nodiscard]] double processors() const;

 private:
  /// Processor seconds of all other processes since the machine started.
  [[nodiscard]] double others() const;

  std::vector<int> children_;
  std::chrono::steady_clock::time_point begin_;
  double before_;
};

/// The same over the next second.
[[nodiscard]] double processors_of_others();

}  // namespace mneme::bench
