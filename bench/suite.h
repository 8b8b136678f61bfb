// Suite: one measurement that `mneme bench NAME` runs. A suite is one .cpp in bench/suites/ that ends
// in `void enrol(Registry& r)`; its declared options become the flags of the verb.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace mneme {

/// Where data sets lie if nobody says otherwise: ../shared/data beside the sources that this was built from.
[[nodiscard]] std::filesystem::path default_data_folder();

/// What every suite is told, whatever it measures.
struct SuiteSetup {
  std::filesystem::path data;  ///< folder of the data sets, one folder each
  std::string language_model = "smollm2", embedder = "minilm";
  std::string adapter;                    ///< of the language model; empty: its own
  std::uint64_t seed = 0;                 ///< what chance starts from
  std::function<void()> between = [] {};  ///< called between pieces of work; throws to stop there
};

/// What a suite found.
struct SuiteReport {
  nlohmann::json figures;  ///< everything, for programs
  std::string text;        ///< the same for people, Markdown
  bool passed = true;      ///< no bar was missed
};

class Suite {
 public:
  static constexpr std::string_view kKind = "suite";
  static constexpr std::string_view kKindHelp = "measurements that `mneme bench` runs";
  using Make = std::unique_ptr<Suite>();

  virtual ~Suite() = default;
  /// Whole command lines for its help; at least one.
  [[nodiscard]] virtual std::vector<std::string> examples() const = 0;
  /// Measures; shows its progress on stderr. Throws Error(not_found) where a data set is missing.
  [[nodiscard]] virtual SuiteReport run(const SuiteSetup& setup) = 0;
};

}  // namespace mneme
